//! Scripted faults: the requests that fail, and the kind of failure.
//!
//! A script is a list of rules. Every rule sees each request, in order, and counts those that match it. The
//! first rule whose turn it is decides. As JSON, for `snapferry-sim store --faults FILE`:
//!
//! ```json
//! [
//!   {"on": "UploadPart", "part": 3, "when": {"nth": 1},
//!    "do": {"answer": {"status": 503, "code": "SlowDown", "retry_after_s": 1}}},
//!   {"on": "UploadPart", "when": {"first_of_each": 1}, "do": "reset"},
//!   {"on": "CompleteMultipartUpload", "when": {"first": 1}, "do": "apply_then_drop"},
//!   {"on": "UploadPartCopy", "do": {"copy_short": {"bytes": 7575}}},
//!   {"do": "ignore_checksums"}
//! ]
//! ```

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SimError;
use super::requests::{Operation, Target};
use super::script::{self, Entry, Script, When};

/// Fault: replaces the correct response, or changes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Reads the body, applies nothing, and responds with an error.
    Answer {
        status: u16,
        /// S3's error code; without one the body is a page of HTML, as proxies send it.
        #[serde(default)]
        code: Option<String>,
        /// Value of the Retry-After header, in seconds.
        #[serde(default)]
        retry_after_s: Option<u32>,
    },
    /// Closes the connection without having read the body.
    DropBeforeBody,
    /// Reads the body, applies nothing, and closes the connection without a response.
    DropAfterBody,
    /// Sends a TCP reset without having read the body.
    Reset,
    /// Waits, then handles the request.
    Delay {
        /// Length of the wait.
        milliseconds: u64,
    },
    /// Reads the body, applies nothing, and never responds.
    Hang,
    /// Reads a little of the body, then nothing more, and never responds.
    StopReading,
    /// Reads the body slowly, and handles the request.
    Trickle {
        /// Rate at which the body is read.
        bytes_per_second: u32,
    },
    /// Handles the request, and closes the connection without a response.
    ApplyThenDrop,
    /// Handles the request, and never responds.
    ApplyThenHang,
    /// Handles the request, and responds with an error.
    ApplyThenAnswer {
        status: u16,
        /// S3's error code, for example SlowDown.
        code: String,
    },
    /// Applies nothing, and responds 200 with an `<Error>` in the body, as S3 may do once it has begun to
    /// respond.
    ErrorInOk {
        /// S3's error code, for example SlowDown.
        code: String,
    },
    /// Handles the request, and sends only the first bytes of the response's body, as if that were all of it.
    CutAnswer {
        /// Number of bytes that are sent.
        bytes: u64,
    },
    /// Reads the body, applies nothing, and responds 200 as if it had.
    Pretend,
    /// Handles the request, and removes the marker of the next page from a listing.
    LoseMarkers,
    /// Handles the request, and responds with an empty ETag, as Ceph does on Complete.
    EmptyEtag,
    /// Handles the request, and responds without a Content-Length, as some proxies do on a HEAD.
    NoLength,
    /// Handles the request, and responds with a checksum that is not the body's.
    CorruptChecksum,
    /// Behaves as a store of before 2022: ignores `x-amz-checksum-*`, and does not return it.
    IgnoreChecksums,
    /// Behaves as a store of before 2022 that refuses unknown headers: responds 501 NotImplemented to a
    /// request with `x-amz-checksum-*`.
    RefuseChecksums,
    /// Copies of a range that goes past the end of its source what is there, and responds 200.
    ClipRange,
    /// Copies at most the first bytes of a range, and responds 200. Swift does so if its `copy` middleware is
    /// missing: it copies the description of an object in parts, and not the object.
    CopyShort {
        /// Number of bytes that are copied.
        bytes: u64,
    },
    /// Copies whatever version the source has, as Ceph does: ignores `x-amz-copy-source-if-match`.
    IgnoreConditions,
    /// Refuses a copy with `x-amz-copy-source-if-match`, even of the right version: responds 412
    /// PreconditionFailed. Swift does so for a source that was uploaded in parts.
    RefuseConditions,
    /// Refuses to complete an upload whose parts, except the last, have different sizes: responds 400
    /// InvalidPart, as Cloudflare R2 does.
    EqualParts,
    /// Behaves as a store that does not copy: responds 501 NotImplemented to CopyObject and UploadPartCopy.
    NoCopies,
}

/// Selects the requests that a fault applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Only requests for this operation; without it, for all.
    #[serde(default)]
    pub on: Option<Operation>,
    /// Only requests for this part number.
    #[serde(default)]
    pub part: Option<u32>,
    /// Only requests for this key.
    #[serde(default)]
    pub key: Option<String>,
    /// Selection among the matching requests.
    #[serde(default)]
    pub when: When,
}

impl Rule {
    /// Matches every request.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Matches every request for `operation`.
    #[must_use]
    pub fn on(operation: Operation) -> Self {
        Self { on: Some(operation), ..Self::default() }
    }

    /// Narrows the rule to requests for part `number`.
    #[must_use]
    pub fn part(self, number: u32) -> Self {
        Self { part: Some(number), ..self }
    }

    /// Narrows the rule to requests for `key`.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    /// Narrows the rule to the requests that `when` selects.
    #[must_use]
    pub fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    fn matches(&self, target: &Target) -> bool {
        self.on.is_none_or(|operation| operation == target.operation)
            && self.part.is_none_or(|part| target.part == Some(part))
            && self.key.as_ref().is_none_or(|key| *key == target.key)
    }
}

/// One entry as it is written in a script.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    on: Option<Operation>,
    #[serde(default)]
    part: Option<u32>,
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    when: When,
    #[serde(rename = "do")]
    action: Action,
}

#[derive(Debug)]
struct Armed {
    rule: Rule,
    action: Action,
    seen: u32,
    seen_of_each: HashMap<Target, u32>,
    fired: u32,
}

impl Armed {
    fn new(rule: Rule, action: Action) -> Self {
        Self { rule, action, seen: 0, seen_of_each: HashMap::new(), fired: 0 }
    }
}

impl From<Written> for Armed {
    fn from(Written { on, part, key, when, action }: Written) -> Self {
        Self::new(Rule { on, part, key, when }, action)
    }
}

impl Entry for Armed {
    type Target<'a> = Target;
    type Action = Action;

    fn is_due(&mut self, target: &Target) -> bool {
        if !self.rule.matches(target) {
            return false;
        }
        self.seen += 1;
        let seen_of_each = &mut self.seen_of_each;
        self.rule.when.is_turn(self.seen, || {
            let seen = seen_of_each.entry(target.clone()).or_default();
            *seen += 1;
            *seen
        })
    }

    fn act(&mut self) -> Action {
        self.fired += 1;
        self.action.clone()
    }

    fn fired(&self) -> u32 {
        self.fired
    }
}

/// Fault script that can be changed while the store runs; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    script: Script<Armed>,
}

impl Faults {
    /// Adds a rule at the end of the script.
    pub fn add(&self, rule: Rule, action: Action) {
        self.script.extend([Armed::new(rule, action)]);
    }

    /// Adds the rules of a script in JSON.
    ///
    /// # Errors
    /// If the text is not a script; then nothing is added.
    pub fn add_json(&self, text: &str) -> Result<(), serde_json::Error> {
        let written: Vec<Written> = serde_json::from_str(text)?;
        self.script.extend(written.into_iter().map(Armed::from));
        Ok(())
    }

    /// Adds the rules of a script file.
    ///
    /// # Errors
    /// If the file can't be read or is not a script.
    pub fn add_file(&self, path: &Path) -> Result<(), SimError> {
        self.script.extend(script::read::<Written>(path)?.into_iter().map(Armed::from));
        Ok(())
    }

    /// Removes all rules of the script.
    pub fn clear(&self) {
        self.script.replace(Vec::new());
    }

    /// Returns the number of times that each rule has acted, in the script's order.
    #[must_use]
    pub fn fired(&self) -> Vec<u32> {
        self.script.fired()
    }

    /// Returns the fault for a request, if there is one.
    pub(super) fn pick(&self, target: &Target) -> Option<Action> {
        self.script.pick(target)
    }
}

impl Action {
    /// Returns an [`Action::Delay`] of this duration.
    #[must_use]
    pub fn delay(duration: Duration) -> Self {
        Self::Delay { milliseconds: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX) }
    }

    /// Returns an [`Action::Answer`] with S3's error code.
    #[must_use]
    pub fn answer(status: u16, code: &str) -> Self {
        Self::Answer { status, code: Some(code.to_owned()), retry_after_s: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u32) -> Target {
        Target {
            operation: Operation::UploadPart,
            bucket: "images".to_owned(),
            key: "a".to_owned(),
            upload: "u".to_owned(),
            part: Some(number),
        }
    }

    fn turns(when: When, numbers: &[u32]) -> Vec<bool> {
        let faults = Faults::default();
        faults.add(Rule::on(Operation::UploadPart).when(when), Action::Reset);
        numbers.iter().map(|number| faults.pick(&part(*number)).is_some()).collect()
    }

    #[test]
    fn a_rule_acts_when_it_is_its_turn() {
        let numbers = [1, 2, 1, 2, 1];
        assert_eq!(turns(When::Always, &numbers), [true; 5]);
        assert_eq!(turns(When::Nth(3), &numbers), [false, false, true, false, false]);
        assert_eq!(turns(When::First(2), &numbers), [true, true, false, false, false]);
        assert_eq!(turns(When::FirstOfEach(2), &numbers), [true, true, true, true, false]);
    }

    #[test]
    fn the_first_rule_that_is_due_decides_and_all_count() {
        let faults = Faults::default();
        faults.add(Rule::on(Operation::UploadPart).part(7), Action::Hang);
        faults.add(Rule::on(Operation::UploadPart).when(When::First(1)), Action::Reset);
        faults.add(Rule::any().when(When::Nth(2)), Action::DropAfterBody);
        assert_eq!(faults.pick(&part(1)), Some(Action::Reset));
        assert_eq!(faults.pick(&part(7)), Some(Action::Hang));
        assert_eq!(faults.pick(&part(1)), None);
        assert_eq!(faults.fired(), [1, 1, 0]);
    }

    #[test]
    fn scripts_are_read_and_typing_errors_are_refused() {
        let faults = Faults::default();
        let script = r#"[
            {"on": "UploadPart", "part": 3, "when": {"nth": 1}, "do": {"answer": {"status": 503, "code": "SlowDown", "retry_after_s": 1}}},
            {"on": "CompleteMultipartUpload", "when": {"first": 1}, "do": "apply_then_drop"},
            {"on": "UploadPartCopy", "do": {"copy_short": {"bytes": 7575}}},
            {"do": "ignore_checksums"}
        ]"#;
        faults.add_json(script).expect("the module's own example");
        let slow_down =
            Action::Answer { status: 503, code: Some("SlowDown".to_owned()), retry_after_s: Some(1) };
        assert_eq!(faults.pick(&part(3)), Some(slow_down));
        assert_eq!(faults.pick(&part(3)), Some(Action::IgnoreChecksums));
        let copy = Target { operation: Operation::UploadPartCopy, ..part(3) };
        assert_eq!(faults.pick(&copy), Some(Action::CopyShort { bytes: 7575 }));
        for wrong in [
            r#"[{"on": "UploadParts", "do": "reset"}]"#,
            r#"[{"do": "explode"}]"#,
            r#"[{"do": "reset", "wehn": "always"}]"#,
        ] {
            let err = faults.add_json(wrong).expect_err(wrong);
            assert!(err.is_data(), "{err}");
        }
    }
}
