//! What several nouns have in common: tags, waits, and being gone.

use std::collections::BTreeSet;
use std::future::Future;

use serde::Deserialize;
use serde_json::json;

use super::RegionClient;
use crate::vpc::error::VpcError;
use crate::vpc::http::Call;
use crate::vpc::model::StateReason;
use crate::vpc::names::Tag;
use crate::vpc::wait::{Patience, Sighting, Verdict, Waiting};

/// How often tags are read and written anew because somebody else changed the thing in between.
const TAG_ATTEMPTS: u32 = 5;

#[derive(Deserialize)]
struct Tagged {
    #[serde(default)]
    user_tags: BTreeSet<String>,
}

impl RegionClient {
    pub(super) fn waiting(&self, what: String, patience: Patience) -> Waiting<'_> {
        Waiting { what, patience, clock: self.clock(), cancel: self.cancel(), watch: &*self.line.watch }
    }

    /// Waits until `look` finds nothing.
    pub(super) async fn gone<F>(&self, what: String, patience: Patience, look: impl Fn() -> F) -> Result<(), VpcError>
    where
        F: Future<Output = Result<Option<(String, Vec<StateReason>)>, VpcError>>,
    {
        self.waiting(what, patience)
            .until(async || {
                Ok(match look().await? {
                    None => Sighting { verdict: Verdict::Reached, state: "gone".to_owned(), reasons: Vec::new(), seen: () },
                    Some((state, reasons)) => {
                        let reasons = reasons.iter().map(StateReason::shown).collect();
                        Sighting { verdict: Verdict::Underway, state, reasons, seen: () }
                    }
                })
            })
            .await
    }

    /// Adds tags, keeping those that are there: the whole list is written, on condition that nobody has changed the thing meanwhile.
    pub(super) async fn add_tags(&self, path: &[&str], noun: &'static str, id: &str, tags: &[Tag]) -> Result<(), VpcError> {
        let mut attempt = 1;
        loop {
            let answer = match self.line.send(&Call::get(path)).await {
                Err(err) if err.is_not_found() => return self.found(None, noun, id),
                answer => answer?,
            };
            let mut all = answer.read::<Tagged>()?.user_tags;
            let before = all.len();
            all.extend(tags.iter().map(|tag| tag.as_str().to_owned()));
            if all.len() == before {
                return Ok(());
            }
            let call = Call::patch(path, &json!({ "user_tags": all }))?.if_match(answer.etag);
            match self.line.send(&call).await {
                Ok(_) => return Ok(()),
                // Also where a lost first answer made our own change: the next look finds the tags there.
                Err(VpcError::Refused { refusal, .. }) if refusal.status == 412 && attempt < TAG_ATTEMPTS => attempt += 1,
                Err(err) => return Err(err),
            }
        }
    }
}
