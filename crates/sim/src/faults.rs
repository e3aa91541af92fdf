//! Scripted faults: which requests go wrong, and how.
//!
//! A script is a list of rules. Each request is shown to every rule in order, each rule counts the requests that match it, and the
//! first one whose turn it is decides. As JSON, for `snapferry sim store --faults FILE`:
//!
//! ```json
//! [
//!   {"on": "UploadPart", "part": 3, "when": {"nth": 1}, "do": {"answer": {"status": 503, "code": "SlowDown", "retry_after_s": 1}}},
//!   {"on": "UploadPart", "when": {"first_of_each": 1}, "do": "reset"},
//!   {"on": "CompleteMultipartUpload", "when": {"first": 1}, "do": "apply_then_drop"},
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

/// What happens instead of the right answer, or to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Reads the body, applies nothing, and answers with an error.
    Answer {
        /// HTTP status.
        status: u16,
        /// S3's error code; without one the body is a page of HTML, as proxies answer.
        #[serde(default)]
        code: Option<String>,
        /// The Retry-After header, in seconds.
        #[serde(default)]
        retry_after_s: Option<u32>,
    },
    /// Closes the connection without having read the body.
    DropBeforeBody,
    /// Reads the body, applies nothing, and closes the connection without an answer.
    DropAfterBody,
    /// Sends a TCP reset without having read the body.
    Reset,
    /// Waits, then does as asked.
    Delay {
        /// For so long.
        milliseconds: u64,
    },
    /// Reads the body, applies nothing, and never answers.
    Hang,
    /// Reads a little of the body, then nothing more, and never answers.
    StopReading,
    /// Takes the body at this rate, then does as asked.
    Trickle {
        /// The rate.
        bytes_per_second: u32,
    },
    /// Does as asked, and closes the connection without an answer.
    ApplyThenDrop,
    /// Does as asked, and never answers.
    ApplyThenHang,
    /// Does as asked, and answers with an error.
    ApplyThenAnswer {
        /// HTTP status.
        status: u16,
        /// S3's error code.
        code: String,
    },
    /// Applies nothing, and answers 200 with an `<Error>` in the body, as S3 may do when it has begun to answer.
    ErrorInOk {
        /// S3's error code.
        code: String,
    },
    /// Does as asked, and answers with so many bytes of the body alone, as if that were all of it.
    CutAnswer {
        /// Bytes of the body, from its first.
        bytes: u64,
    },
    /// Reads the body, applies nothing, and answers 200 as if it had been done.
    Pretend,
    /// Does as asked, and leaves out of a list where it goes on.
    LoseMarkers,
    /// Does as asked, and answers with an empty ETag, as Ceph does on Complete.
    EmptyEtag,
    /// Does as asked, and answers without a Content-Length, as some proxies pass on a HEAD.
    NoLength,
    /// Does as asked, and answers with a checksum that is not the body's.
    CorruptChecksum,
    /// A store of before 2022: neither looks at `x-amz-checksum-*` nor answers with it.
    IgnoreChecksums,
    /// A store of before 2022 that refuses what it doesn't know: 501 NotImplemented for a request with `x-amz-checksum-*`.
    RefuseChecksums,
}

/// Which requests go wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Only this operation; all without.
    #[serde(default)]
    pub on: Option<Operation>,
    /// Only this part.
    #[serde(default)]
    pub part: Option<u32>,
    /// Only this key.
    #[serde(default)]
    pub key: Option<String>,
    /// Only some of those.
    #[serde(default)]
    pub when: When,
}

impl Rule {
    /// Every request.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Every request for `operation`.
    #[must_use]
    pub fn on(operation: Operation) -> Self {
        Self { on: Some(operation), ..Self::default() }
    }

    /// Of those, the ones about part `number`.
    #[must_use]
    pub fn part(self, number: u32) -> Self {
        Self { part: Some(number), ..self }
    }

    /// Of those, the ones about `key`.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    /// Of those, the ones whose turn it is.
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

/// One entry as a script has it.
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

/// A script that can be changed while the store runs; clones share it.
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
    /// Where the text is no script; then nothing is added.
    pub fn add_json(&self, text: &str) -> Result<(), serde_json::Error> {
        let written: Vec<Written> = serde_json::from_str(text)?;
        self.script.extend(written.into_iter().map(Armed::from));
        Ok(())
    }

    /// Adds the rules of a script file.
    ///
    /// # Errors
    /// Where the file can't be read or is no script.
    pub fn add_file(&self, path: &Path) -> Result<(), SimError> {
        self.script.extend(script::read::<Written>(path)?.into_iter().map(Armed::from));
        Ok(())
    }

    /// Drops the whole script.
    pub fn clear(&self) {
        self.script.replace(Vec::new());
    }

    /// How often each rule has acted, in the script's order.
    #[must_use]
    pub fn fired(&self) -> Vec<u32> {
        self.script.fired()
    }

    /// What to do with a request.
    pub(super) fn pick(&self, target: &Target) -> Option<Action> {
        self.script.pick(target)
    }
}

impl Action {
    /// The wait of [`Action::Delay`].
    #[must_use]
    pub fn delay(duration: Duration) -> Self {
        Self::Delay { milliseconds: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX) }
    }

    /// An error with S3's code.
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
            {"do": "ignore_checksums"}
        ]"#;
        faults.add_json(script).expect("the module's own example");
        let slow_down =
            Action::Answer { status: 503, code: Some("SlowDown".to_owned()), retry_after_s: Some(1) };
        assert_eq!(faults.pick(&part(3)), Some(slow_down));
        assert_eq!(faults.pick(&part(3)), Some(Action::IgnoreChecksums));
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
