//! One run of the program: everything that each command needs and none makes for itself.

use crate::cli::error::CommandResult;
use snapferry_base::cancel::Cancel;
use tokio::runtime::Runtime;

use super::environment::Environment;
use super::log::Verbosity;
use super::progress::Console;
use super::runtime::runtime;
use super::settings::Settings;
use super::signals::{self, Left};

/// One run of the program.
pub struct Session {
    /// The process' variables, read once: tests pass others.
    pub environment: Environment,
    /// Settings of the configuration file and the environment, as they became defaults of flags.
    pub settings: Settings,
    pub console: Console,
    pub verbosity: Verbosity,
    /// Stops the work, once [`Session::start`] was called.
    pub cancel: Cancel,
}

impl Session {
    /// Makes the runtime for requests. A signal ends the process as the system does it.
    ///
    /// # Errors
    /// If the system refuses threads.
    pub fn runtime(&self) -> CommandResult<Runtime> {
        Ok(runtime()?)
    }

    /// Makes the runtime for requests, and listens for signals from then on. `left` is what the work leaves behind if the user
    /// does not let it end.
    ///
    /// # Errors
    /// If the system refuses threads, or the handlers can't be installed.
    pub fn start(&self, left: Left) -> CommandResult<Runtime> {
        let runtime = runtime()?;
        signals::listen(runtime.handle(), &self.cancel, left)?;
        Ok(runtime)
    }
}
