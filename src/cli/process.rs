//! What is set up for the whole process, before anything else is done.

use snapferry_base::limits::{Allowance, TooTight, bound_arenas};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use super::panics;

/// SIGXFSZ, on every architecture that Linux counts signals alike on (signal(7): all but Alpha, SPARC, MIPS and PA-RISC).
const FILE_TOO_LARGE: SignalKind = SignalKind::from_raw(25);

/// Begins.
///
/// # Errors
/// Where the limits of this process leave too little for any command.
pub fn begin() -> Result<(), TooTight> {
    let allowance = Allowance::of_process();
    bound_arenas(&allowance);
    panics::install();
    // Without the files that this takes it would panic; hardly any command gets as far as writing then.
    if allowance.file_size.is_some() && allowance.runtime().is_ok() {
        survive_large_files();
    }
    allowance.begin()
}

/// A write beyond the limit on files is an error from now on, and no longer the end without a word. By a handler, which stays when the runtime is gone
/// that it was made in: whatever program we become or start gets the signal's default back, as it would not if we ignored it.
fn survive_large_files() {
    let Ok(runtime) = Builder::new_current_thread().enable_io().build() else { return };
    let _inside = runtime.enter();
    // Nobody listens: the failed write says it all.
    drop(signal(FILE_TOO_LARGE));
}
