//! What a job has sent for its image, and what it took from an earlier one: read from the job's result.

use serde::Deserialize;
use serde_json::{Value, json};
use snapferry_base::units::ByteCount;

/// Part of a job's result. A field is `None` if the version of snapferry that made the result did not record
/// it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Sent {
    #[serde(default)]
    bytes_sent: Option<ByteCount>,
    #[serde(default)]
    base: Option<Base>,
    #[serde(default)]
    full_because: Option<String>,
}

/// Earlier image that was used.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Base {
    key: String,
    segments: u64,
    segments_unchanged: u64,
    bytes_copied: ByteCount,
}

impl Sent {
    /// Reads the result of a job, in JSON. `None` if the job has made no object.
    pub fn of_result(result: &str) -> Option<Self> {
        let result: Value = serde_json::from_str(result).ok()?;
        Self::deserialize(&result["object"]).ok()
    }

    /// Returns a text for a column of a table.
    pub fn short(&self) -> String {
        let sent = self.bytes_sent.map(|sent| sent.to_string());
        match (&self.base, &self.full_because) {
            (Some(Base { segments, segments_unchanged, .. }), _) => {
                let unchanged = format!("{segments_unchanged} of {segments} segments unchanged");
                sent.map_or(unchanged.clone(), |sent| format!("{sent}, {unchanged}"))
            }
            (None, Some(reason)) => {
                format!("{}full: {reason}", sent.map_or(String::new(), |sent| sent + ", "))
            }
            (None, None) => sent.unwrap_or_default(),
        }
    }

    /// Returns a sentence.
    pub fn long(&self) -> String {
        let sent = self.bytes_sent.map(|sent| format!(", {sent} sent")).unwrap_or_default();
        match &self.base {
            Some(Base { key, segments, segments_unchanged, bytes_copied }) => format!(
                "{key}: {segments_unchanged} of {segments} segments unchanged; {bytes_copied} copied in the store{sent}"
            ),
            None => match &self.full_because {
                Some(reason) => format!("none ({reason}){sent}"),
                None => String::new(),
            },
        }
    }
}

/// Returns the fields of a result's object that show what was sent, for `--json`.
pub fn fields(result: &str) -> Value {
    let result: Value = serde_json::from_str(result).unwrap_or_default();
    let object = &result["object"];
    json!({
        "bytes_sent": object["bytes_sent"],
        "base": object["base"],
        "full_because": object["full_because"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_shows_what_was_copied_or_why_nothing_was() {
        let copied = r#"{"object":{"bytes_sent":1048576,"base":{"key":"web01/a.qcow2","segments":7,
            "segments_unchanged":5,"bytes_copied":2097152},"full_because":null}}"#;
        let sent = Sent::of_result(copied).expect("an object");
        assert_eq!(sent.short(), "1 MiB, 5 of 7 segments unchanged");
        assert_eq!(
            sent.long(),
            "web01/a.qcow2: 5 of 7 segments unchanged; 2 MiB copied in the store, 1 MiB sent"
        );
        let full = Sent::of_result(r#"{"object":{"bytes_sent":1024,"base":null,"full_because":"refused"}}"#);
        let full = full.expect("an object");
        assert_eq!(
            (full.short(), full.long()),
            ("1 KiB, full: refused".to_owned(), "none (refused), 1 KiB sent".to_owned())
        );
        let before = Sent::of_result(r#"{"object":{"size":5}}"#).expect("an object");
        assert_eq!((before.short(), before.long()), (String::new(), String::new()));
        assert_eq!(Sent::of_result("{}"), None);
        assert_eq!(fields(copied)["base"]["segments_unchanged"], 5);
        assert_eq!(fields("nothing")["bytes_sent"], Value::Null);
    }
}
