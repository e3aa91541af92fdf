//! Set-up of the whole process, before anything else is done.

use snapferry_base::limits::{Allowance, TooTight, bound_arenas};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use super::panics;

/// Number of SIGXFSZ on every architecture on which Linux numbers signals alike (signal(7): all but Alpha,
/// SPARC, MIPS and PA-RISC).
const FILE_TOO_LARGE: SignalKind = SignalKind::from_raw(25);

/// Sets up memory, the panic hook and the handling of limits for this process.
///
/// # Errors
/// If the limits of this process leave too little for any command.
pub fn begin() -> Result<(), TooTight> {
    let allowance = Allowance::of_process();
    bound_arenas(&allowance);
    panics::install();
    // tokio panics without the files that a runtime takes. With so few files hardly any command gets as far
    // as writing.
    if allowance.file_size.is_some() && allowance.runtime().is_ok() {
        survive_large_files();
    }
    allowance.begin()
}

/// Turns a write beyond the limit on file sizes into an error; without this, the signal ends the process
/// without a message. The signal gets a handler, which stays when its runtime is gone, because a program that
/// this process becomes or starts gets the default back then. An ignored signal would stay ignored there.
fn survive_large_files() {
    let Ok(runtime) = Builder::new_current_thread().enable_io().build() else { return };
    let _inside = runtime.enter();
    // No receiver is needed: the failed write returns the error.
    drop(signal(FILE_TOO_LARGE));
}
