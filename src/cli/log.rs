//! Log lines on stderr, above the progress bar if there is one, or in systemd's journal.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, StderrLock, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde::Serialize;
use snapferry_base::audit::CHANGES;
use tracing::Level;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{FmtSpan, JsonFields, Writer};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::json_log::{JsonLines, Record};
use super::printable::{self, Form, Shown, line};
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

/// True once it is known that this run's lines are objects.
static IS_JSON: AtomicBool = AtomicBool::new(false);
/// True once this run's lines go to the journal.
static IS_JOURNAL: AtomicBool = AtomicBool::new(false);

/// Looks for `--log-format json` on a command line that was not parsed yet: if it can't be parsed, the error
/// is an object, too.
pub fn find_format(typed: &[OsString]) {
    let mut args = typed.iter().skip(1).filter_map(|arg| arg.to_str()).take_while(|&arg| arg != "--");
    while let Some(arg) = args.next() {
        let value = match arg.strip_prefix("--log-format") {
            Some("") => args.next(),
            Some(value) => value.strip_prefix('='),
            None => None,
        };
        if value == Some("json") {
            IS_JSON.store(true, Relaxed);
        }
    }
}

/// Returns the format of this run's lines: text if the journal was asked for, and there is none.
pub fn format() -> LogFormat {
    match (IS_JSON.load(Relaxed), IS_JOURNAL.load(Relaxed)) {
        (true, _) => LogFormat::Json,
        (false, true) => LogFormat::Journald,
        (false, false) => LogFormat::Text,
    }
}

/// Prints one line that has to reach the user whatever was asked for, without the logger.
pub fn print_last(level: Level, message: &str) {
    if format() == LogFormat::Json {
        Record::new(level, message).print();
    } else {
        // If stderr is closed, there is no other place for the message.
        let _ = io::stderr().write_all(format!("error: {message}\n").as_bytes());
    }
}

/// Prints the report at the end of a command on stderr: as text, or with `--log-format json` as one line with
/// the same object as `--json` prints. The work is done, even if stderr is closed.
pub fn print_report(
    level: Level,
    summary: &str,
    report: &impl Serialize,
    write: impl FnOnce(&mut Shown<StderrLock<'static>>) -> io::Result<()>,
) {
    if format() == LogFormat::Json {
        Record::new(level, summary).with_report(report).print();
    } else {
        let _ = write(&mut printable::err());
    }
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
    let lines = || layer().fmt_fields(TextFields).with_writer(AboveBar(console.clone(), Form::Text));
    let objects = || {
        layer()
            .event_format(JsonLines)
            .fmt_fields(JsonFields::new())
            .with_writer(AboveBar(console.clone(), Form::Json))
    };
    let all = tracing_subscriber::registry().with(filter);
    IS_JSON.store(format == LogFormat::Json, Relaxed);
    // Only a test that runs two commands in one process finds a subscriber already there.
    let _ = match format {
        LogFormat::Text => all.with(lines().with_ansi(console::colors_enabled_stderr())).try_init(),
        LogFormat::Json => all.with(objects()).try_init(),
        LogFormat::Journald => match tracing_journald::layer() {
            Ok(journal) => {
                IS_JOURNAL.store(true, Relaxed);
                all.with(journal.with_syslog_identifier("snapferry".to_owned()).with_field_prefix(None))
                    .try_init()
            }
            Err(err) => {
                let started = all.with(lines().with_ansi(false)).try_init();
                tracing::warn!("there is no journal to write to, so it goes to stderr: {err}");
                started
            }
        },
    };
}

/// Formatter of the fields of a text line. It leaves out ids that are for programs alone.
struct TextFields;

struct TextVisitor<'a, 'writer> {
    to: &'a mut Writer<'writer>,
    is_first: bool,
    written: fmt::Result,
}

impl Visit for TextVisitor<'_, '_> {
    fn record_debug(&mut self, given: &Field, value: &dyn fmt::Debug) {
        if self.written.is_err() || given.name() == "message_id" {
            return;
        }
        let delimiter = if self.is_first { "" } else { " " };
        self.is_first = false;
        self.written = self.to.write_str(delimiter).and_then(|()| field(self.to, given, value));
    }
}

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = TextVisitor { to: &mut writer, is_first: true, written: Ok(()) };
        fields.record(&mut visitor);
        visitor.written
    }
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
