//! Operations that several kinds of resource share: tags, waits and deletion.

use std::collections::BTreeSet;
use std::future::Future;

use serde::Deserialize;
use serde_json::json;

use super::RegionClient;
use super::conflict::Conflict;
use crate::vpc::error::VpcError;
use crate::vpc::http::ApiRequest;
use crate::vpc::model::StateReason;
use crate::vpc::names::Tag;
use crate::vpc::wait::{Patience, Sighting, Verdict, Waiting};

/// Number of times that tags are read and written if another process changes the resource in between.
const TAG_ATTEMPTS: u32 = 5;

#[derive(Deserialize)]
struct Tagged {
    #[serde(default)]
    user_tags: BTreeSet<String>,
}

impl RegionClient {
    /// Returns a wait for a caller who has already applied the user's settings to `patience`.
    pub(super) fn waiting(&self, what: String, patience: Patience) -> Waiting<'_> {
        Waiting { what, patience, clock: self.clock(), cancel: self.cancel(), watch: &*self.line.watch }
    }

    /// Deletes the resource at `path`. Succeeds too if it is already deleted or, by `going`, being deleted.
    /// While it is busy, waits for it unless `going` reports that it can't be deleted.
    pub(super) async fn remove(
        &self,
        what: &str,
        patience: Patience,
        path: &[&str],
        going: impl AsyncFn() -> Result<Conflict<()>, VpcError>,
    ) -> Result<(), VpcError> {
        self.line.change(what, patience, async || self.delete(path).await, going).await
    }

    /// Waits until `look` finds nothing.
    pub(super) async fn gone<F>(
        &self,
        what: String,
        patience: Patience,
        look: impl Fn() -> F,
    ) -> Result<(), VpcError>
    where
        F: Future<Output = Result<Option<(String, Vec<StateReason>)>, VpcError>>,
    {
        self.waiting(what, patience)
            .until(async || {
                Ok(match look().await? {
                    None => Sighting {
                        verdict: Verdict::Reached,
                        state: "gone".to_owned(),
                        reasons: Vec::new(),
                        seen: (),
                    },
                    Some((state, reasons)) => {
                        let reasons = reasons.iter().map(StateReason::shown).collect();
                        Sighting { verdict: Verdict::Underway, state, reasons, seen: () }
                    }
                })
            })
            .await
    }

    /// Adds tags and keeps the present ones.
    pub(super) async fn add_tags(
        &self,
        path: &[&str],
        noun: &'static str,
        id: &str,
        tags: &[Tag],
    ) -> Result<(), VpcError> {
        self.edit_tags(path, noun, id, |all| all.extend(tags.iter().map(|tag| tag.as_str().to_owned()))).await
    }

    /// Changes tags: writes the whole list on condition that no other process has changed the resource
    /// meanwhile.
    pub(super) async fn edit_tags(
        &self,
        path: &[&str],
        noun: &'static str,
        id: &str,
        edit: impl Fn(&mut BTreeSet<String>),
    ) -> Result<(), VpcError> {
        // If an earlier request made the change and its response was lost, the next read finds the tags in
        // place.
        let again = async || Ok(Conflict::Passing);
        self.line
            .change(
                &format!("{noun} {id}"),
                Patience::BUSY,
                async || self.edit_tags_once(path, noun, id, &edit).await,
                again,
            )
            .await
    }

    async fn edit_tags_once(
        &self,
        path: &[&str],
        noun: &'static str,
        id: &str,
        edit: &impl Fn(&mut BTreeSet<String>),
    ) -> Result<(), VpcError> {
        let mut attempt = 1;
        loop {
            let answer = match self.line.send(&ApiRequest::get(path)).await {
                Err(err) if err.is_not_found() => return self.found(None, noun, id),
                answer => answer?,
            };
            let before = answer.read::<Tagged>()?.user_tags;
            let mut after = before.clone();
            edit(&mut after);
            if after == before {
                return Ok(());
            }
            let call = ApiRequest::patch(path, &json!({ "user_tags": after }))?.if_match(answer.etag);
            match self.line.send(&call).await {
                Ok(_) => return Ok(()),
                // This also happens if an earlier request made the change and its response was lost.
                Err(VpcError::Refused { refusal, .. }) if refusal.status == 412 && attempt < TAG_ATTEMPTS => {
                    attempt += 1;
                }
                Err(err) => return Err(err),
            }
        }
    }
}
