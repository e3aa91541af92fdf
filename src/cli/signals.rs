//! Messages after a signal to stop, and the remains of work that is cut short.

use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::signals::{self, Stop};
use tokio::runtime::Handle;
use tracing::Level;

use super::exit::Code;
use super::log;

/// Remains of work that the user does not let end.
#[derive(Clone, Debug)]
pub enum Unfinished {
    /// Upload, which `uploads list` finds.
    Upload,
    /// Target that holds part of a disk.
    Target,
    /// Job in the cloud, which can be resumed.
    Job,
    /// Jobs of a worker. The second signal cancels this [`Cancel`], and the worker gives them back at once;
    /// the third signal ends the process.
    Jobs(Cancel),
    Nothing,
}

impl Unfinished {
    /// Returns what the work does before it ends, for the message.
    fn action(&self) -> Option<&'static str> {
        Some(match self {
            Self::Upload => "ending the upload",
            Self::Target => "giving up the target",
            Self::Job => "detaching and removing the volume, if there is one",
            Self::Jobs(_) => "giving back the jobs at hand; what is being converted comes to its end first",
            // There is nothing to bring to an end, or hardly anything.
            Self::Nothing => return None,
        })
    }

    fn message(&self) -> &'static str {
        match self {
            Self::Upload => {
                "stopped at once; `snapferry uploads list` shows an upload that may be left in the bucket"
            }
            Self::Target => {
                "stopped at once; a device, or a file that is written where it lies, is incomplete, or a hidden file that ends in .partial is left beside the output"
            }
            Self::Job => {
                "stopped at once; `snapferry replicate --resume` goes on with the job, `snapferry gc` shows what it has left"
            }
            Self::Jobs(_) => {
                "stopped at once; another worker takes the jobs at hand over when their leases have run out, in two minutes"
            }
            Self::Nothing => "stopped at once",
        }
    }
}

/// Handles signals from now on. Before this call the work has made nothing yet, and the system's default
/// action is right: it ends the process.
///
/// # Errors
/// If the handlers can't be installed.
pub fn listen(runtime: &Handle, cancel: &Cancel, unfinished: Unfinished) -> std::io::Result<()> {
    // A worker goes on with its other jobs if one of them panics.
    if !matches!(unfinished, Unfinished::Jobs(_)) {
        super::panics::end(cancel);
    }
    let cancel = cancel.clone();
    signals::listen(runtime, move |stop| match stop {
        Stop::Begin => {
            let action = unfinished.action().map(|action| format!(": {action}")).unwrap_or_default();
            tracing::warn!("stopping{action} (once more to exit at once)");
            cancel.cancel(Reason::Requested);
        }
        Stop::AtOnce => match &unfinished {
            Unfinished::Jobs(hurry) if !hurry.is_cancelled() => {
                tracing::warn!("giving back at once what is being converted, too");
                hurry.cancel(Reason::Requested);
            }
            unfinished => {
                // The user has waited long enough.
                log::print_last(Level::ERROR, unfinished.message());
                std::process::exit(Code::Interrupted as i32);
            }
        },
    })
}
