//! Session: everything that each command needs and none makes for itself.

use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use tokio::runtime::Runtime;

use super::environment::Environment;
use super::log::Verbosity;
use super::progress::Console;
use super::runtime::runtime;
use super::settings::Settings;
use super::signals::{self, Unfinished};
use super::throughput::Throughput;
use crate::cli::error::CommandResult;

/// One run of the program.
pub struct Session {
    /// Environment variables of the process, read once: tests pass others.
    pub environment: Environment,
    /// Settings of the configuration file and the environment, as they became defaults of flags.
    pub settings: Settings,
    pub console: Console,
    pub verbosity: Verbosity,
    /// Stops the work, once [`Session::start`] was called.
    pub cancel: Cancel,
    /// Bytes that this run has moved.
    pub throughput: Arc<Throughput>,
}

impl Session {
    /// Creates the runtime for requests. Signals keep the system's default action: they end the process at
    /// once.
    ///
    /// # Errors
    /// If the system refuses threads.
    pub fn runtime(&self) -> CommandResult<Runtime> {
        Ok(runtime()?)
    }

    /// Creates the runtime for requests, and handles signals from then on. `unfinished` is what the work
    /// leaves behind if the user does not let it end.
    ///
    /// # Errors
    /// If the system refuses threads, or the handlers can't be installed.
    pub fn start(&self, unfinished: Unfinished) -> CommandResult<Runtime> {
        let runtime = runtime()?;
        signals::listen(runtime.handle(), &self.cancel, unfinished)?;
        Ok(runtime)
    }
}
