//! SIGINT and SIGTERM: the first asks the work to stop, the second ends the process at once.

use std::io::Write as _;

use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::Code;
use crate::cancel::{Cancel, Reason};

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
    /// A demonstration's folder, with a copy of the disk in it.
    #[cfg(feature = "sim")]
    Demo,
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
            #[cfg(feature = "sim")]
            Self::Demo => "removing what was made",
            // Nothing has to be brought to an end, or hardly anything.
            Self::Nothing => return None,
        })
    }

    fn words(&self) -> &'static str {
        match self {
            Self::Upload => "snapferry: stopped at once; `snapferry uploads list` shows an upload that may be left in the bucket\n",
            Self::Target => {
                "snapferry: stopped at once; a device is incomplete, or a hidden file that ends in .partial is left beside the output\n"
            }
            Self::Job => {
                "snapferry: stopped at once; `snapferry replicate --resume` goes on with the job, `snapferry gc` shows what it has left\n"
            }
            Self::Jobs(_) => {
                "snapferry: stopped at once; another worker takes the jobs at hand over when their leases have run out, in two minutes\n"
            }
            #[cfg(feature = "sim")]
            Self::Demo => {
                "snapferry: stopped at once; a folder snapferry-demo-... with a copy of the disk is left in TMPDIR or /tmp\n"
            }
            Self::Nothing => "snapferry: stopped at once\n",
        }
    }
}

/// Listens from now on.
///
/// # Errors
/// Where the handlers can't be installed.
pub fn listen(runtime: &Handle, cancel: &Cancel, left: Left) -> std::io::Result<()> {
    // A worker goes on with its other jobs when one of them dies.
    if !matches!(left, Left::Jobs(_)) {
        super::panics::end(cancel);
    }
    let _inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let cancel = cancel.clone();
    runtime.spawn(async move {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if asked
                && let Left::Jobs(hurry) = &left
                && !hurry.is_cancelled()
            {
                tracing::warn!("giving back at once what is being converted, too");
                hurry.cancel(Reason::Asked);
                continue;
            }
            if asked {
                // The user has waited long enough.
                let _ = std::io::stderr().write_all(left.words().as_bytes());
                std::process::exit(Code::Interrupted as i32);
            }
            asked = true;
            let doing = left.doing().map(|doing| format!(": {doing}")).unwrap_or_default();
            tracing::warn!("stopping{doing} (once more to exit at once)");
            cancel.cancel(Reason::Asked);
        }
    });
    Ok(())
}
