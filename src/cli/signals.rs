//! SIGINT and SIGTERM: the first asks the work to stop, the second ends the process at once.

use std::io::Write as _;

use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::Code;
use crate::cancel::{Cancel, Reason};

/// Listens from now on.
///
/// # Errors
/// Where the handlers can't be installed.
pub fn listen(runtime: &Handle, cancel: &Cancel) -> std::io::Result<()> {
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
            if asked {
                // The user has waited long enough; a half-ended upload is found by `uploads list`.
                let _ = std::io::stderr().write_all(
                    b"snapferry: stopped at once; `snapferry uploads list` shows an upload that may be left in the bucket\n",
                );
                std::process::exit(Code::Interrupted as i32);
            }
            asked = true;
            tracing::warn!("stopping: ending the upload (once more to exit at once)");
            cancel.cancel(Reason::Asked);
        }
    });
    Ok(())
}
