//! What a signal to stop says on the terminal, and what work that is cut short leaves behind.

use std::io::Write as _;

use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::signals::{self, Stop};
use tokio::runtime::Handle;

use super::exit::Code;

/// What work that is not let end leaves behind.
#[derive(Clone, Debug)]
pub enum Left {
    /// An upload, which `uploads list` finds.
    Upload,
    /// A target that holds part of a disk.
    Target,
    /// A job in the cloud, which can be resumed.
    Job,
    /// A worker's jobs. At a second word, which it is told by this one, it gives them back at once; at a third it ends.
    Jobs(Cancel),
    /// Nothing.
    Nothing,
}

impl Left {
    /// What the work has to do before it ends.
    fn doing(&self) -> Option<&'static str> {
        Some(match self {
            Self::Upload => "ending the upload",
            Self::Target => "giving up the target",
            Self::Job => "detaching and removing the volume, if there is one",
            Self::Jobs(_) => "giving back the jobs at hand; what is being converted comes to its end first",
            // Nothing has to be brought to an end, or hardly anything.
            Self::Nothing => return None,
        })
    }

    fn words(&self) -> &'static str {
        match self {
            Self::Upload => {
                "snapferry: stopped at once; `snapferry uploads list` shows an upload that may be left in the bucket\n"
            }
            Self::Target => {
                "snapferry: stopped at once; a device, or a file that is written where it lies, is incomplete, or a hidden file that ends in .partial is left beside the output\n"
            }
            Self::Job => {
                "snapferry: stopped at once; `snapferry replicate --resume` goes on with the job, `snapferry gc` shows what it has left\n"
            }
            Self::Jobs(_) => {
                "snapferry: stopped at once; another worker takes the jobs at hand over when their leases have run out, in two minutes\n"
            }
            Self::Nothing => "snapferry: stopped at once\n",
        }
    }
}

/// Listens from now on. Until then nothing has been made, and the system's own end of a process is the right one.
///
/// # Errors
/// Where the handlers can't be installed.
pub fn listen(runtime: &Handle, cancel: &Cancel, left: Left) -> std::io::Result<()> {
    // A worker goes on with its other jobs when one of them dies.
    if !matches!(left, Left::Jobs(_)) {
        super::panics::end(cancel);
    }
    let cancel = cancel.clone();
    signals::listen(runtime, move |stop| match stop {
        Stop::Begin => {
            let doing = left.doing().map(|doing| format!(": {doing}")).unwrap_or_default();
            tracing::warn!("stopping{doing} (once more to exit at once)");
            cancel.cancel(Reason::Asked);
        }
        Stop::AtOnce => match &left {
            Left::Jobs(hurry) if !hurry.is_cancelled() => {
                tracing::warn!("giving back at once what is being converted, too");
                hurry.cancel(Reason::Asked);
            }
            left => {
                // The user has waited long enough.
                let _ = std::io::stderr().write_all(left.words().as_bytes());
                std::process::exit(Code::Interrupted as i32);
            }
        },
    })
}
