//! Lines of `--log-format json`: each line on stderr is one JSON object, and no object has a key twice.
//!
//! | key | content |
//! |---|---|
//! | `timestamp`, `level`, `target`, `message` | in every line |
//! | `job`, `step`, `request_id` and so on | fields of the event, and of its spans from the innermost on |
//! | `span`, `spans` | the innermost span, and all from the outermost on, each with its `name` |
//!
//! The formatter of `tracing-subscriber` writes a key twice if a field has the name of one of its own keys,
//! and readers then keep either.

use std::fmt;
use std::io::Write as _;

use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use super::printable::{Form, Shown};

/// Keys that a line gets at its end.
const SPANS: [&str; 2] = ["span", "spans"];
/// Target of the lines that the command line writes itself.
const TARGET: &str = "snapferry";

/// One line, as key and value in their order.
#[derive(Debug)]
pub struct Record(Vec<(String, Value)>);

impl Record {
    /// Begins a line of the command line itself.
    pub fn new(level: Level, message: impl Into<String>) -> Self {
        Self::of(level, TARGET, Some(message.into().into()))
    }

    fn of(level: Level, target: &str, message: Option<Value>) -> Self {
        let mut record = Self(Vec::with_capacity(16));
        record.add("timestamp", timestamp().into());
        record.add("level", level.as_str().into());
        record.add("target", target.into());
        if let Some(message) = message {
            record.add("message", message);
        }
        record
    }

    fn is_taken(&self, key: &str) -> bool {
        SPANS.contains(&key) || self.0.iter().any(|(known, _)| known == key)
    }

    fn add(&mut self, key: &str, value: Value) {
        self.0.push((key.to_owned(), value));
    }

    /// Adds a field. If its key is taken, it stands under another one, so that nothing is lost.
    fn add_field(&mut self, key: &str, value: Value) {
        let mut key = key.to_owned();
        while self.is_taken(&key) {
            key.insert_str(0, "field.");
        }
        self.add(&key, value);
    }

    /// Returns the line with one more value, or without it if it can't be written as JSON.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Serialize) -> Self {
        if let Ok(value) = serde_json::to_value(value) {
            self.add_field(key, value);
        }
        self
    }

    /// Returns the line with a report, whose job and server it names as the lines of the job's work do.
    #[must_use]
    pub fn with_report(mut self, report: impl Serialize) -> Self {
        if let Ok(report) = serde_json::to_value(report) {
            for key in ["job", "server"] {
                if let Some(value) = report.get(key) {
                    self.add_field(key, value.clone());
                }
            }
            self.add_field("report", report);
        }
        self
    }

    /// Writes the line to stderr. If stderr is closed, there is no other place for it.
    pub fn print(&self) {
        if let Ok(mut line) = serde_json::to_string(self) {
            line.push('\n');
            let _ = Shown { to: std::io::stderr().lock(), form: Form::Json }.write_all(line.as_bytes());
        }
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

fn timestamp() -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

/// Writes the current time without the heap, as every line has it.
pub fn write_timestamp(to: &mut impl fmt::Write) -> fmt::Result {
    SystemTime.format_time(&mut Writer::new(to))
}

/// Formatter of the lines.
#[derive(Clone, Copy, Debug)]
pub struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut record = Record::of(*metadata.level(), metadata.target(), fields.message);
        for (key, value) in fields.others {
            record.add_field(key, value);
        }
        let innermost_first: Vec<Map<String, Value>> =
            context.event_scope().into_iter().flatten().map(|span| fields_of::<S, N>(&span)).collect();
        for (key, value) in innermost_first.iter().flatten() {
            if !record.is_taken(key) {
                record.add(key, value.clone());
            }
        }
        let mut spans: Vec<Value> = context
            .event_scope()
            .into_iter()
            .flatten()
            .zip(innermost_first)
            .map(|(span, mut fields)| {
                if let Some(field) = fields.insert("name".to_owned(), span.name().into()) {
                    fields.insert("field.name".to_owned(), field);
                }
                Value::Object(fields)
            })
            .collect();
        if let Some(innermost) = spans.first().cloned() {
            spans.reverse();
            record.add("span", innermost);
            record.add("spans", spans.into());
        }
        writeln!(writer, "{}", serde_json::to_string(&record).map_err(|_| fmt::Error)?)
    }
}

/// Returns the fields of a span, which its formatter has kept as JSON.
fn fields_of<S, N>(span: &SpanRef<'_, S>) -> Map<String, Value>
where
    S: for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    let extensions = span.extensions();
    let fields = extensions.get::<FormattedFields<N>>();
    fields.and_then(|fields| serde_json::from_str(&fields.fields).ok()).unwrap_or_default()
}

/// Fields of an event.
#[derive(Debug, Default)]
struct Fields {
    message: Option<Value>,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn note(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = Some(value),
            name => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.note(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.note(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.note(field, value.into());
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.note(field, u64::try_from(value).map_or_else(|_| value.to_string().into(), Value::from));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.note(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.note(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::fmt::format::JsonFields;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Kept {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn lines_of(work: impl FnOnce()) -> Vec<String> {
        let kept = Kept::default();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .event_format(JsonLines)
            .fmt_fields(JsonFields::new())
            .with_writer(kept.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        let bytes = kept.0.lock().expect("no panic").clone();
        String::from_utf8(bytes).expect("text").lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_has_the_fields_of_all_spans_and_the_event_beats_them() {
        let lines = lines_of(|| {
            let _job = tracing::error_span!("job", job = "j1", server = "web01").entered();
            let _step = tracing::error_span!("step", step = "attach").entered();
            tracing::info!(target: "snapferry::changes", server = "db01", tries = 2, "done");
        });
        let line: Value = serde_json::from_str(&lines[0]).expect("JSON");
        let expected = serde_json::json!({
            "timestamp": line["timestamp"], "level": "INFO", "target": "snapferry::changes", "message": "done",
            "server": "db01", "tries": 2, "step": "attach", "job": "j1",
            "span": { "step": "attach", "name": "step" },
            "spans": [{ "job": "j1", "server": "web01", "name": "job" }, { "step": "attach", "name": "step" }],
        });
        assert_eq!(line, expected);
        assert!(lines[0].starts_with("{\"timestamp\":\"20"), "{}", lines[0]);
    }

    #[test]
    fn a_field_with_the_name_of_a_key_loses_nothing() {
        let lines = lines_of(|| {
            let _span = tracing::error_span!("job", name = "inner", level = "high").entered();
            tracing::warn!(level = 3, target = "there", spans = true, "mine");
        });
        let (outer, spans) = lines[0].split_once(",\"span\":").expect("a span");
        let expected = [
            ("level", 1),
            ("field.level", 1),
            ("target", 1),
            ("field.target", 1),
            ("field.spans", 1),
            ("spans", 0),
            ("name", 1),
        ];
        for (key, times) in expected {
            assert_eq!(outer.matches(&format!(",\"{key}\":")).count(), times, "{key}: {}", lines[0]);
        }
        assert_eq!(spans.matches("\"field.name\":\"inner\"").count(), 2, "{spans}");
        assert_eq!(spans.matches("\"name\":\"job\"").count(), 2, "{spans}");
    }
}
