//! Log lines on stderr, above the progress bar if there is one, or in systemd's journal.

use std::fmt;
use std::io::{self, Write};

use snapferry_ibmcloud::vpc::CHANGES;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{FmtSpan, Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::printable::{Form, Shown, line};
use super::progress::Console;

/// Amount of output that the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors, and no progress or report.
    Quiet,
    /// Steps, warnings and errors, with progress and report.
    Normal,
    /// As [`Verbosity::Normal`], with each request and each retry.
    Verbose,
    /// As [`Verbosity::Verbose`], with the module of each line, and the time that each step took.
    Detailed,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Plain text, coloured on a terminal
    Text,
    /// One JSON object per line, for programs
    Json,
    /// Fields of systemd's journal, sent to its own socket: every field can be searched for
    Journald,
}

/// Starts logging for the whole process. `SNAPFERRY_LOG` overrides the level, in `tracing`'s filter syntax.
pub fn start(verbosity: Verbosity, format: LogFormat, console: &Console) {
    let level = match verbosity {
        Verbosity::Quiet => LevelFilter::ERROR,
        Verbosity::Normal => LevelFilter::WARN,
        Verbosity::Verbose => LevelFilter::DEBUG,
        Verbosity::Detailed => LevelFilter::TRACE,
    };
    // snapferry logs at the level that the user asked for. Libraries never log below warnings, because their
    // debug lines show headers.
    let own = if verbosity == Verbosity::Normal { LevelFilter::INFO } else { level };
    let mut default = format!("{},snapferry={own}", level.min(LevelFilter::WARN));
    // On a terminal the steps themselves show each change.
    if console.is_terminal() && verbosity == Verbosity::Normal {
        default.push_str(&format!(",{CHANGES}=warn"));
    }
    let filter = EnvFilter::try_from_env("SNAPFERRY_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // The layer would report a failed write to stderr with `eprintln!`, which panics then.
    let detailed = verbosity == Verbosity::Detailed;
    let ends = if detailed { FmtSpan::CLOSE } else { FmtSpan::NONE };
    let layer = || {
        tracing_subscriber::fmt::layer()
            .with_target(detailed)
            .with_span_events(ends.clone())
            .log_internal_errors(false)
    };
    let lines = || {
        layer().fmt_fields(debug_fn(field).delimited(" ")).with_writer(AboveBar(console.clone(), Form::Text))
    };
    let objects = || {
        layer()
            .json()
            .flatten_event(true)
            .with_span_list(true)
            .with_writer(AboveBar(console.clone(), Form::Json))
    };
    let all = tracing_subscriber::registry().with(filter);
    // Only a test that runs two commands in one process finds a subscriber already there.
    let _ = match format {
        LogFormat::Text => all.with(lines().with_ansi(console::colors_enabled_stderr())).try_init(),
        LogFormat::Json => all.with(objects()).try_init(),
        LogFormat::Journald => match tracing_journald::layer() {
            Ok(journal) => all
                .with(journal.with_syslog_identifier("snapferry".to_owned()).with_field_prefix(None))
                .try_init(),
            Err(err) => {
                let started = all.with(lines().with_ansi(false)).try_init();
                tracing::warn!("there is no journal to write to, so it goes to stderr: {err}");
                started
            }
        },
    };
}

/// Writes a field, or the line's message. Foreign text in it must neither control a terminal nor begin a new
/// line.
fn field(to: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    match field.name() {
        "message" => to.write_str(&line(&value)),
        name if to.has_ansi_escapes() => write!(to, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{}", line(&value)),
        name => write!(to, "{name}={}", line(&value)),
    }
}

struct AboveBar(Console, Form);

impl<'a> MakeWriter<'a> for AboveBar {
    type Writer = LineWriter<'a>;
    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter(&self.0, self.1)
    }
}

struct LineWriter<'a>(&'a Console, Form);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.1 {
            // The fields are escaped already, and the text around them may be coloured.
            Form::Text => self.0.print(line)?,
            Form::Json => {
                let mut escaped = Vec::with_capacity(line.len());
                Shown { to: &mut escaped, form: Form::Json }.write_all(line)?;
                self.0.print(&escaped)?;
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
