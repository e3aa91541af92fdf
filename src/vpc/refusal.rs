//! IBM's error answers: `{"errors":[{"code","message","target"}],"trace"}`, and what stands there when a gateway answers instead.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::retry::Class;

/// The most of an answer's own words that an error repeats, in characters.
const LONGEST_MESSAGE: usize = 400;
/// The most single errors of one answer that are shown.
const MOST_FAULTS: usize = 8;

/// A request that the API refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The single errors, at least one.
    pub faults: Vec<Fault>,
    /// IBM's id for the answer, which support asks for.
    pub trace: Option<String>,
    /// How long the API asks us to stay away.
    pub retry_after: Option<Duration>,
}

/// One error of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// IBM's code, such as `not_found`; the status' own name where the answer has none.
    pub code: String,
    /// IBM's words, in one line.
    pub message: String,
    /// What it is about: the name of a field, a parameter or a header.
    pub target: Option<String>,
}

impl Refusal {
    /// Reads an answer with `status`, whatever its body is.
    #[must_use]
    pub fn read(status: u16, body: &[u8], retry_after: Option<Duration>) -> Self {
        let told: Option<Body> = serde_json::from_slice(body).ok();
        let trace = told.as_ref().and_then(|told| told.trace.clone()).map(|trace| one_line(&trace));
        let mut faults: Vec<Fault> =
            told.map(|told| told.errors).unwrap_or_default().into_iter().take(MOST_FAULTS).map(Fault::from).collect();
        if faults.is_empty() {
            let name = reqwest::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
            faults.push(Fault {
                code: name.unwrap_or("no reason").to_lowercase().replace([' ', '-'], "_"),
                message: one_line(&String::from_utf8_lossy(body)),
                target: None,
            });
        }
        Self { status, faults, trace, retry_after }
    }

    /// The first error's code.
    #[must_use]
    pub fn code(&self) -> &str {
        self.faults.first().map_or("", |fault| &fault.code)
    }

    /// Whether one of the errors has this code.
    #[must_use]
    pub fn has(&self, code: &str) -> bool {
        self.faults.iter().any(|fault| fault.code == code)
    }

    /// Whether one of the errors is about this field, parameter or header.
    #[must_use]
    pub fn is_about(&self, target: &str) -> bool {
        self.faults.iter().any(|fault| fault.target.as_deref() == Some(target))
    }

    /// Whether what was to be changed may only be busy with another change: whoever asked has to look.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status == 409 || self.has("snapshots_source_volume_busy")
    }

    /// What it means for another attempt.
    ///
    /// 429 and all 5xx but 501 are tried again, as IBM's SDKs do (go-sdk-core, `core/base_service.go`), and so is 408. A source
    /// volume that another snapshot keeps busy is free again in a while.
    #[must_use]
    pub fn class(&self) -> Class {
        match self.status {
            429 => Class::Throttled,
            408 => Class::Transient,
            501 => Class::Permanent,
            500.. => Class::Transient,
            _ if self.has("snapshots_source_volume_busy") => Class::Throttled,
            _ => Class::Permanent,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the cloud answered {}", self.status)?;
        for (i, fault) in self.faults.iter().enumerate() {
            write!(f, "{} {}", if i == 0 { "" } else { "," }, fault.code)?;
            if let Some(target) = &fault.target {
                write!(f, " ({target})")?;
            }
            if !fault.message.is_empty() {
                write!(f, ": {}", fault.message)?;
            }
        }
        if let Some(trace) = &self.trace {
            write!(f, " [trace {trace}]")?;
        }
        Ok(())
    }
}

/// The answer's body, with nothing in it that must be there.
#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    errors: Vec<Told>,
    #[serde(default)]
    trace: Option<String>,
}

#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    #[serde(default)]
    name: String,
}

impl From<Told> for Fault {
    fn from(told: Told) -> Self {
        let target = told.target.map(|target| one_line(&target.name)).filter(|name| !name.is_empty());
        Self { code: one_line(&told.code), message: one_line(&told.message), target }
    }
}

/// Text from outside, fit to stand in a message: one line, no control characters, not endless.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    match line.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ibms_own_example_is_shown_whole() {
        let body = br#"{"errors":[{"code":"cos_invalid_file_extension","message":"Only .qcow2 and .vhd","more_info":"https://x",
            "target":{"name":"file.href","type":"field"}}],"trace":"7f3a"}"#;
        let refusal = Refusal::read(400, body, None);
        assert_eq!(
            refusal.to_string(),
            "the cloud answered 400 cos_invalid_file_extension (file.href): Only .qcow2 and .vhd [trace 7f3a]"
        );
        assert_eq!(refusal.class(), Class::Permanent);
    }

    #[test]
    fn a_gateways_page_is_one_line() {
        let refusal = Refusal::read(502, b"<html>\n<h1>Bad\x1b[31m gateway</h1>\n</html>", None);
        assert_eq!(refusal.to_string(), "the cloud answered 502 bad_gateway: <html> <h1>Bad [31m gateway</h1> </html>");
        assert_eq!(refusal.class(), Class::Transient);
        assert!(Refusal::read(500, &[b'x'; 5000], None).to_string().len() < 500);
    }

    #[test]
    fn classes_follow_ibms_own_retry_policy() {
        for (status, class) in [
            (400, Class::Permanent),
            (401, Class::Permanent),
            (404, Class::Permanent),
            (408, Class::Transient),
            (409, Class::Permanent),
            (429, Class::Throttled),
            (500, Class::Transient),
            (501, Class::Permanent),
            (503, Class::Transient),
            (599, Class::Transient),
        ] {
            assert_eq!(Refusal::read(status, b"", None).class(), class, "{status}");
        }
        let busy = Refusal::read(409, br#"{"errors":[{"code":"snapshots_source_volume_busy","message":"locked"}]}"#, None);
        assert_eq!(busy.class(), Class::Throttled);
    }
}
