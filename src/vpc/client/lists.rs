//! Lists, which come in pages that are followed to the end.

use std::collections::HashSet;

use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::RegionClient;
use crate::vpc::error::VpcError;
use crate::vpc::http::{Answer, Call};

/// What we ask for at once. IBM's own drivers never ask for more.
const PAGE: u32 = 100;
/// No list of ours is longer, so one that is must be going round in circles.
const MOST_PAGES: usize = 10_000;

/// The longest mark of a next page that is sent back, in bytes: an address has no room for more than 64 KiB.
const LONGEST_MARK: usize = 8192;

#[derive(Deserialize)]
struct Link {
    href: String,
}

/// One page: the things under `key`, and where the next one starts.
fn page<T: DeserializeOwned>(answer: &Answer, key: &str) -> Result<(Vec<T>, Option<String>), VpcError> {
    let malformed = |reason: String| VpcError::Malformed { request: answer.request.clone(), reason };
    let mut page: Map<String, Value> = answer.read()?;
    let Some(things) = page.remove(key) else { return Err(malformed(format!("there is no list {key:?} in it"))) };
    let things = serde_json::from_value(things).map_err(|err| malformed(format!("{key}: {err}")))?;
    let next: Option<Link> = page
        .remove("next")
        .map(|next| serde_json::from_value(next).map_err(|err| malformed(format!("next: {err}"))))
        .transpose()?
        .flatten();
    let Some(next) = next else { return Ok((things, None)) };
    // Of the link only the mark is taken: behind a private endpoint its host is not the one that we may reach.
    let start = answer_url(&next.href).and_then(|url| {
        url.query_pairs().find(|(name, _)| name == "start").map(|(_, start)| start.into_owned()).filter(|start| !start.is_empty())
    });
    start
        .filter(|start| start.len() <= LONGEST_MARK)
        .map(|start| (things, Some(start)))
        .ok_or_else(|| malformed(format!("the link to the next page has no start: {}", next.href)))
}

/// The link, which may be relative.
fn answer_url(href: &str) -> Option<Url> {
    Url::parse("https://localhost/").ok()?.join(href).ok()
}

impl RegionClient {
    /// All things of a list with `filters`, page by page.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        key: &str,
        filters: &[(&str, String)],
    ) -> Result<Vec<T>, VpcError> {
        let mut all = Vec::new();
        let mut start: Option<String> = None;
        let mut starts = HashSet::new();
        for _ in 0..MOST_PAGES {
            let mut call = Call::get(path).query("limit", PAGE.to_string());
            for (name, value) in filters {
                call = call.query(name, value);
            }
            if let Some(start) = start.take() {
                call = call.query("start", start);
            }
            let answer = self.line.send(&call).await?;
            let (things, next) = page::<T>(&answer, key)?;
            all.extend(things);
            let Some(next) = next else { return Ok(all) };
            if !starts.insert(next.clone()) {
                let reason = format!("the list {key:?} leads back to a page that was there already");
                return Err(VpcError::Malformed { request: answer.request, reason });
            }
            start = Some(next);
        }
        Err(VpcError::Setup(format!("the list {key:?} has more than {MOST_PAGES} pages")))
    }

    /// All things of a list that comes in one piece.
    pub(super) async fn whole_list<T: DeserializeOwned>(&self, path: &[&str], key: &str) -> Result<Vec<T>, VpcError> {
        Ok(page(&self.line.send(&Call::get(path)).await?, key)?.0)
    }

    /// The one thing of that name. The API filters by exact name; that it did is checked, since a filter that it did not know would
    /// be ignored.
    pub(super) async fn by_name<T: DeserializeOwned>(
        &self,
        path: &[&str],
        key: &str,
        filters: &[(&str, String)],
        name: &str,
        name_of: impl Fn(&T) -> &str,
    ) -> Result<Option<T>, VpcError> {
        let mut filters = filters.to_vec();
        filters.push(("name", name.to_owned()));
        let found: Vec<T> = self.list(path, key, &filters).await?;
        Ok(found.into_iter().find(|thing| name_of(thing) == name))
    }
}
