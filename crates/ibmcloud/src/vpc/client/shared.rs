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
    pub(super) fn waiting(&self, subject: String, patience: Patience) -> Waiting<'_> {
        Waiting { subject, patience, clock: self.clock(), cancel: self.cancel(), watch: &*self.client.watch }
    }

    /// Deletes the resource at `path`. Succeeds too if it is already deleted or, by `check`, being deleted.
    /// While it is busy, waits for it unless `check` reports that it can't be deleted.
    pub(super) async fn remove(
        &self,
        subject: &str,
        patience: Patience,
        path: &[&str],
        check: impl AsyncFn() -> Result<Conflict<()>, VpcError>,
    ) -> Result<(), VpcError> {
        self.client.change(subject, patience, async || self.delete(path).await, check).await
    }

    /// Waits until `find` finds nothing.
    pub(super) async fn wait_until_gone<F>(
        &self,
        subject: String,
        patience: Patience,
        find: impl Fn() -> F,
    ) -> Result<(), VpcError>
    where
        F: Future<Output = Result<Option<(String, Vec<StateReason>)>, VpcError>>,
    {
        self.waiting(subject, patience)
            .until(async || {
                Ok(match find().await? {
                    None => Sighting {
                        verdict: Verdict::Reached,
                        state: "gone".to_owned(),
                        reasons: Vec::new(),
                        resource: (),
                    },
                    Some((state, reasons)) => {
                        let reasons = reasons.iter().map(StateReason::describe).collect();
                        Sighting { verdict: Verdict::Underway, state, reasons, resource: () }
                    }
                })
            })
            .await
    }

    /// Adds tags and keeps the present ones.
    pub(super) async fn add_tags(
        &self,
        path: &[&str],
        kind: &'static str,
        id: &str,
        tags: &[Tag],
    ) -> Result<(), VpcError> {
        self.edit_tags(path, kind, id, |all| all.extend(tags.iter().map(|tag| tag.as_str().to_owned()))).await
    }

    /// Changes tags: writes the whole list on condition that no other process has changed the resource
    /// meanwhile.
    pub(super) async fn edit_tags(
        &self,
        path: &[&str],
        kind: &'static str,
        id: &str,
        edit: impl Fn(&mut BTreeSet<String>),
    ) -> Result<(), VpcError> {
        // If an earlier request made the change and its response was lost, the next read finds the tags in
        // place.
        let check = async || Ok(Conflict::Passing);
        self.client
            .change(
                &format!("{kind} {id}"),
                Patience::BUSY,
                async || self.edit_tags_once(path, kind, id, &edit).await,
                check,
            )
            .await
    }

    async fn edit_tags_once(
        &self,
        path: &[&str],
        kind: &'static str,
        id: &str,
        edit: &impl Fn(&mut BTreeSet<String>),
    ) -> Result<(), VpcError> {
        let mut attempt = 1;
        loop {
            let response = match self.client.send(&ApiRequest::get(path)).await {
                Err(err) if err.is_not_found() => return self.require(None, kind, id),
                response => response?,
            };
            let before = response.read::<Tagged>()?.user_tags;
            let mut after = before.clone();
            edit(&mut after);
            if after == before {
                return Ok(());
            }
            let call = ApiRequest::patch(path, &json!({ "user_tags": after }))?.if_match(response.etag);
            match self.client.send(&call).await {
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
