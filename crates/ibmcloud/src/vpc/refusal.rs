//! Error responses of the API: `{"errors":[{"code","message","target"}],"trace"}`, or any body if a gateway
//! answers in the API's place.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use snapferry_base::retry::Class;

/// Limit on each text from a response that an error repeats, in characters.
const LONGEST_MESSAGE: usize = 400;
/// Largest number of errors of one response that are kept.
const MAX_FAULTS: usize = 8;

/// Error response of the API to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status code.
    pub status: u16,
    /// Errors in the response, at least one.
    pub faults: Vec<Fault>,
    /// IBM's identifier of the response, which IBM's support asks for.
    pub trace: Option<String>,
    /// Time to wait before the next attempt, from `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// One error of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// IBM's code, such as `not_found`; the name of the HTTP status if the response has none.
    pub code: String,
    /// Message of the API, on one line.
    pub message: String,
    /// Name of the field, parameter or header that the error is about.
    pub target: Option<String>,
}

impl Refusal {
    /// Reads a response with `status` and any body: text that is not the API's JSON becomes the message.
    #[must_use]
    pub fn read(status: u16, body: &[u8], retry_after: Option<Duration>) -> Self {
        let parsed: Option<Body> = serde_json::from_slice(body).ok();
        let trace = parsed.as_ref().and_then(|parsed| parsed.trace.clone()).map(|trace| one_line(&trace));
        let mut faults: Vec<Fault> = parsed
            .map(|parsed| parsed.errors)
            .unwrap_or_default()
            .into_iter()
            .take(MAX_FAULTS)
            .map(Fault::from)
            .collect();
        if faults.is_empty() {
            let name =
                reqwest::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
            faults.push(Fault {
                code: name.unwrap_or("no reason").to_lowercase().replace([' ', '-'], "_"),
                message: one_line(&String::from_utf8_lossy(body)),
                target: None,
            });
        }
        Self { status, faults, trace, retry_after }
    }

    /// Returns the code of the first error.
    #[must_use]
    pub fn code(&self) -> &str {
        self.faults.first().map_or("", |fault| &fault.code)
    }

    /// Returns true if one of the errors has this code.
    #[must_use]
    pub fn has(&self, code: &str) -> bool {
        self.faults.iter().any(|fault| fault.code == code)
    }

    /// Returns true if one of the errors is about this field, parameter or header.
    #[must_use]
    pub fn is_about(&self, target: &str) -> bool {
        self.faults.iter().any(|fault| fault.target.as_deref() == Some(target))
    }

    /// Returns true if the resource may only be busy with another change. The caller has to look at it to
    /// find out.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status == 409 || self.has("snapshots_source_volume_busy")
    }

    /// Returns the retry class of the response.
    ///
    /// 429 and all 5xx but 501 are tried again, as IBM's SDKs do (go-sdk-core, `core/base_service.go`), and
    /// so is 408. A source volume that is busy with another snapshot is free again after a while.
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

/// Body of an error response. Every field is optional.
#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    errors: Vec<ErrorBody>,
    #[serde(default)]
    trace: Option<String>,
}

#[derive(Deserialize)]
struct ErrorBody {
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

impl From<ErrorBody> for Fault {
    fn from(error: ErrorBody) -> Self {
        let target = error.target.map(|target| one_line(&target.name)).filter(|name| !name.is_empty());
        Self { code: one_line(&error.code), message: one_line(&error.message), target }
    }
}

/// Makes text from outside fit for a message: one line, no control characters, limited length.
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
        assert_eq!(
            refusal.to_string(),
            "the cloud answered 502 bad_gateway: <html> <h1>Bad [31m gateway</h1> </html>"
        );
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
        let busy = Refusal::read(
            409,
            br#"{"errors":[{"code":"snapshots_source_volume_busy","message":"locked"}]}"#,
            None,
        );
        assert_eq!(busy.class(), Class::Throttled);
    }
}
