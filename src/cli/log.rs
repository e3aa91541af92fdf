//! Log lines: on stderr, above the bar where there is one.

use std::io::{self, Write};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::progress::Console;
use crate::vpc::CHANGES;

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// What a user wants to know.
    Normal,
    /// Each request.
    Verbose,
}

/// Starts logging for the whole process. `SNAPFERRY_LOG` overrides the level, in `tracing`'s filter syntax.
pub fn start(verbosity: Verbosity, console: &Console) {
    let level = match verbosity {
        Verbosity::Quiet => LevelFilter::ERROR,
        Verbosity::Normal => LevelFilter::WARN,
        Verbosity::Verbose => LevelFilter::DEBUG,
    };
    // Ours at the level that was asked for; libraries never below warnings, since their debug lines show headers.
    let own = if verbosity == Verbosity::Normal { LevelFilter::INFO } else { level };
    // The embedded store's library logs every refusal as an error, and refusals are what it is there for.
    let mut default = format!("{},s3s=off,snapferry={own}", level.min(LevelFilter::WARN));
    // On a terminal the steps themselves tell what was changed.
    if console.is_terminal() && verbosity == Verbosity::Normal {
        default.push_str(&format!(",{CHANGES}=warn"));
    }
    let filter = EnvFilter::try_from_env("SNAPFERRY_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        // Its own way of complaining about a stderr that is full is a panic.
        .log_internal_errors(false)
        .with_ansi(console.is_terminal())
        .with_writer(AboveBar(console.clone()));
    // Only a test that runs two commands in one process finds a subscriber already there.
    let _ = subscriber.try_init();
}

struct AboveBar(Console);

impl<'a> MakeWriter<'a> for AboveBar {
    type Writer = LineWriter<'a>;
    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter(&self.0)
    }
}

struct LineWriter<'a>(&'a Console);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspended(|| io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
