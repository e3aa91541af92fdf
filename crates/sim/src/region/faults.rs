//! Scripted faults of the simulated cloud, by operation and turn.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::script::{self, Entry, Script, When};
use super::super::server::SimError;
use super::route::RegionOperation;

/// Fault: replaces the correct response, or changes the created resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionAction {
    /// Applies nothing, and responds with an error.
    Answer {
        status: u16,
        /// IBM's error code; without one the body is a page of HTML, as gateways send it.
        #[serde(default)]
        code: Option<String>,
        /// Value of the Retry-After header, in seconds.
        #[serde(default)]
        retry_after_s: Option<u32>,
    },
    /// Waits, then handles the request.
    Delay {
        /// Length of the wait.
        milliseconds: u64,
    },
    /// Applies nothing, and never responds.
    Hang,
    /// Applies nothing, and closes the connection.
    Drop,
    /// Applies nothing, and sends a TCP reset.
    Reset,
    /// Handles the request, and closes the connection without a response.
    ApplyThenDrop,
    /// Handles the request, and responds with an error.
    ApplyThenAnswer {
        status: u16,
        /// IBM's error code, for example over_quota.
        code: String,
    },
    /// Handles the request, and never responds.
    ApplyThenHang,
    /// Handles the request, and responds; after that no request gets a response, until the script is cleared.
    ThenSilence,
    /// Handles the request, and responds with a body that is not JSON.
    Garble,
    /// Handles the request, and returns a page of a list as if it were the last one.
    EndEarly,
    /// Handles the request; the created resource never leaves its first state.
    StuckPending,
    /// Handles the request; the created resource fails in the end, with this reason.
    FailLater {
        /// IBM's reason code, as in `status_reasons`.
        code: String,
    },
    /// Handles the request; lists don't show the created resource for a while.
    ListLag {
        /// Length of the wait.
        milliseconds: u64,
    },
}

/// Selects the requests that a fault applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionRule {
    /// Only requests for this operation; without it, for all.
    #[serde(default)]
    pub on: Option<RegionOperation>,
    /// Only requests to this region.
    #[serde(default)]
    pub region: Option<String>,
    /// Selection among the matching requests.
    #[serde(default)]
    pub when: When,
}

impl RegionRule {
    /// Matches requests for all operations.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Matches every request for `operation`.
    #[must_use]
    pub fn on(operation: RegionOperation) -> Self {
        Self { on: Some(operation), ..Self::default() }
    }

    /// Narrows the rule to the requests that `when` selects.
    #[must_use]
    pub fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    /// Narrows the rule to requests to `region`.
    #[must_use]
    pub fn region(self, region: &str) -> Self {
        Self { region: Some(region.to_owned()), ..self }
    }
}

/// One entry of a script, with the number of requests that it has matched and acted on.
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

/// Fault script that can be changed while the cloud runs; clones share it.
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
    /// If the text is not a script; then nothing is added.
    pub fn add_json(&self, text: &[u8]) -> Result<(), serde_json::Error> {
        self.script.extend(serde_json::from_slice::<Vec<Armed>>(text)?);
        Ok(())
    }

    /// Replaces the script with one in JSON.
    ///
    /// # Errors
    /// If the text is not a script; then the old one stays.
    pub fn replace_json(&self, text: &[u8]) -> Result<(), serde_json::Error> {
        self.script.replace(serde_json::from_slice(text)?);
        Ok(())
    }

    /// Adds the rules of a script file.
    ///
    /// # Errors
    /// If the file can't be read or is not a script.
    pub fn add_file(&self, path: &Path) -> Result<(), SimError> {
        self.script.extend(script::read(path)?);
        Ok(())
    }

    /// Removes all rules of the script, and ends the silence of [`RegionAction::ThenSilence`].
    pub fn clear(&self) {
        self.script.replace(Vec::new());
        self.silent.store(false, Ordering::Relaxed);
    }

    /// Returns the number of times that each rule has acted, in the script's order.
    #[must_use]
    pub fn fired(&self) -> Vec<u32> {
        self.script.fired()
    }

    /// Returns the script as JSON, with its counts.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(&*self.script.lock()).unwrap_or_default()
    }

    /// Returns the fault for a request, if there is one.
    pub(super) fn pick(&self, operation: RegionOperation, region: &str) -> Option<RegionAction> {
        if self.silent.load(Ordering::Relaxed) {
            return Some(RegionAction::Hang);
        }
        self.script.pick(&(operation, region))
    }

    /// Leaves every request from now on without a response.
    pub(super) fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }
}

impl RegionAction {
    /// Returns a [`RegionAction::Answer`] with IBM's error code.
    #[must_use]
    pub fn answer(status: u16, code: &str) -> Self {
        Self::Answer { status, code: Some(code.to_owned()), retry_after_s: None }
    }

    /// Returns a [`RegionAction::Delay`] of this duration.
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
