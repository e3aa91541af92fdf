//! Faults of the simulated cloud, by operation and turn.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::script::{self, Entry, Script, When};
use super::super::server::SimError;
use super::route::RegionOperation;

/// What happens in place of the right answer, or to what was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionAction {
    /// Does nothing, and answers with an error.
    Answer {
        /// HTTP status.
        status: u16,
        /// IBM's error code; an HTML page without, as a gateway has it.
        #[serde(default)]
        code: Option<String>,
        /// The Retry-After header, in seconds.
        #[serde(default)]
        retry_after_s: Option<u32>,
    },
    /// Waits, then does as asked.
    Delay {
        /// For so long.
        milliseconds: u64,
    },
    /// Does nothing, and never answers.
    Hang,
    /// Does nothing, and closes the connection.
    Drop,
    /// Does nothing, and sends a TCP reset.
    Reset,
    /// Does as asked, and closes the connection without an answer.
    ApplyThenDrop,
    /// Does as asked, and answers with an error.
    ApplyThenAnswer {
        /// HTTP status.
        status: u16,
        /// IBM's error code.
        code: String,
    },
    /// Does as asked, and never answers.
    ApplyThenHang,
    /// Does as asked, and answers; from then on nobody is answered any more, until the script is dropped.
    ThenSilence,
    /// Does as asked, and answers with something that is no JSON.
    Garble,
    /// Does as asked, and gives a page of a list as if it were the last one.
    EndEarly,
    /// What is made never leaves its first state.
    StuckPending,
    /// What is made fails in the end, for this reason.
    FailLater {
        /// IBM's reason code.
        code: String,
    },
    /// What is made does not show in lists for a while.
    ListLag {
        /// For so long.
        milliseconds: u64,
    },
}

/// Which requests go wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionRule {
    /// Only this operation; all without.
    #[serde(default)]
    pub on: Option<RegionOperation>,
    /// Only in this region.
    #[serde(default)]
    pub region: Option<String>,
    /// Only some of those.
    #[serde(default)]
    pub when: When,
}

impl RegionRule {
    /// Every request.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Every request for `operation`.
    #[must_use]
    pub fn on(operation: RegionOperation) -> Self {
        Self { on: Some(operation), ..Self::default() }
    }

    /// Of those, the ones whose turn it is.
    #[must_use]
    pub fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    /// Of those, the ones in `region`.
    #[must_use]
    pub fn region(self, region: &str) -> Self {
        Self { region: Some(region.to_owned()), ..self }
    }
}

/// One entry of a script, and how often it has matched and acted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Armed {
    #[serde(default)]
    on: Option<RegionOperation>,
    #[serde(default)]
    region: Option<String>,
    #[serde(default)]
    when: When,
    #[serde(rename = "do")]
    action: RegionAction,
    #[serde(default)]
    seen: u32,
    #[serde(default)]
    fired: u32,
}

impl Entry for Armed {
    type Target<'a> = (RegionOperation, &'a str);
    type Action = RegionAction;

    fn is_due(&mut self, (operation, region): &(RegionOperation, &str)) -> bool {
        if self.on.is_some_and(|on| on != *operation)
            || self.region.as_ref().is_some_and(|only| only != region)
        {
            return false;
        }
        self.seen += 1;
        self.when.is_turn(self.seen, || self.seen)
    }

    fn act(&mut self) -> RegionAction {
        self.fired += 1;
        self.action.clone()
    }

    fn fired(&self) -> u32 {
        self.fired
    }
}

/// A script that can be changed while the cloud runs; clones share it.
#[derive(Clone, Debug, Default)]
pub struct RegionFaults {
    script: Script<Armed>,
    silent: Arc<AtomicBool>,
}

impl RegionFaults {
    /// Adds a rule at the end of the script.
    pub fn add(&self, rule: RegionRule, action: RegionAction) {
        let RegionRule { on, region, when } = rule;
        self.script.extend([Armed { on, region, when, action, seen: 0, fired: 0 }]);
    }

    /// Adds the rules of a script in JSON.
    ///
    /// # Errors
    /// Where the text is no script; then nothing is added.
    pub fn add_json(&self, text: &[u8]) -> Result<(), serde_json::Error> {
        self.script.extend(serde_json::from_slice::<Vec<Armed>>(text)?);
        Ok(())
    }

    /// Puts a script in JSON in place of the one that there is.
    ///
    /// # Errors
    /// Where the text is no script; then the old one stays.
    pub fn replace_json(&self, text: &[u8]) -> Result<(), serde_json::Error> {
        self.script.replace(serde_json::from_slice(text)?);
        Ok(())
    }

    /// Adds the rules of a script file.
    ///
    /// # Errors
    /// Where the file can't be read or is no script.
    pub fn add_file(&self, path: &Path) -> Result<(), SimError> {
        self.script.extend(script::read(path)?);
        Ok(())
    }

    /// Drops the whole script.
    pub fn clear(&self) {
        self.script.replace(Vec::new());
        self.silent.store(false, Ordering::Relaxed);
    }

    /// How often each rule has acted, in the script's order.
    #[must_use]
    pub fn fired(&self) -> Vec<u32> {
        self.script.fired()
    }

    /// The script as JSON, with its counts.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(&*self.script.lock()).unwrap_or_default()
    }

    /// What to do with a request.
    pub(super) fn pick(&self, operation: RegionOperation, region: &str) -> Option<RegionAction> {
        if self.silent.load(Ordering::Relaxed) {
            return Some(RegionAction::Hang);
        }
        self.script.pick(&(operation, region))
    }

    /// From now on nobody is answered.
    pub(super) fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }
}

impl RegionAction {
    /// An error with IBM's code.
    #[must_use]
    pub fn answer(status: u16, code: &str) -> Self {
        Self::Answer { status, code: Some(code.to_owned()), retry_after_s: None }
    }

    /// The wait of [`RegionAction::Delay`].
    #[must_use]
    pub fn delay(duration: Duration) -> Self {
        Self::Delay { milliseconds: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_read_and_rules_act_in_their_turn() {
        let faults = RegionFaults::default();
        let script = br#"[
            {"on": "create_snapshot", "when": {"nth": 2}, "do": {"answer": {"status": 429, "retry_after_s": 1}}},
            {"on": "create_volume", "region": "us-east", "do": "stuck_pending"}
        ]"#;
        faults.add_json(script).expect("the module's own example");
        let create = RegionOperation::CreateSnapshot;
        assert_eq!(faults.pick(create, "us-south"), None);
        let throttled = RegionAction::Answer { status: 429, code: None, retry_after_s: Some(1) };
        assert_eq!(faults.pick(create, "us-south"), Some(throttled));
        assert_eq!(faults.pick(RegionOperation::CreateVolume, "us-south"), None);
        assert_eq!(faults.pick(RegionOperation::CreateVolume, "us-east"), Some(RegionAction::StuckPending));
        assert_eq!(faults.fired(), [1, 1]);
        let wrong = faults.add_json(br#"[{"do": "explode"}]"#).expect_err("no such action");
        assert!(wrong.is_data(), "{wrong}");
    }
}
