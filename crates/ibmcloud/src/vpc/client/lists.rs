//! Lists of the API: their pages are read to the end.

use std::collections::HashSet;

use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use snapferry_base::units::to_u64;

use super::RegionClient;
use crate::vpc::error::{Request, VpcError};
use crate::vpc::http::{ApiRequest, ApiResponse};

/// Entries per page. IBM's own drivers never ask for more.
const PAGE: u32 = 100;
/// Limit on the pages of one list. No real list is that long: a longer one repeats itself.
const MAX_PAGES: usize = 10_000;

/// Limit on the `start` value of a next page that is sent back, in bytes: a URL has no room for more than 64
/// KiB.
const LONGEST_START: usize = 8192;

#[derive(Deserialize)]
struct Link {
    href: String,
}

/// Number of times that a list is read if it came out short: resources may come and go between two pages.
const MAX_READS: usize = 3;

/// One page of a list.
struct Page<T> {
    entries: Vec<T>,
    /// `start` value of the next page.
    next: Option<String>,
    /// Number of entries on all pages, if the API reports it.
    total: Option<u64>,
}

/// All pages of a list.
struct Pages<T> {
    all: Vec<T>,
    /// Smallest total that any of the pages reported.
    min_total: Option<u64>,
    /// Number of entries on the last page.
    last_len: u32,
    /// Request for the last page.
    request: Request,
}

/// Reads one page: the entries under `key`.
fn page<T: DeserializeOwned>(response: &ApiResponse, key: &str) -> Result<Page<T>, VpcError> {
    let malformed = |reason: String| VpcError::Malformed { request: response.request.clone(), reason };
    let mut page: Map<String, Value> = response.read()?;
    let Some(entries) = page.remove(key) else {
        return Err(malformed(format!("there is no list {key:?} in it")));
    };
    let entries = serde_json::from_value(entries).map_err(|err| malformed(format!("{key}: {err}")))?;
    let total = page.get("total_count").and_then(Value::as_u64);
    let next: Option<Link> = page
        .remove("next")
        .map(|next| serde_json::from_value(next).map_err(|err| malformed(format!("next: {err}"))))
        .transpose()?
        .flatten();
    let Some(next) = next else { return Ok(Page { entries, next: None, total }) };
    // Only the `start` value of the link is used: behind a private endpoint, the link's host may not be
    // reachable.
    let start = parse_link(&next.href).and_then(|url| {
        url.query_pairs()
            .find(|(name, _)| name == "start")
            .map(|(_, start)| start.into_owned())
            .filter(|start| !start.is_empty())
    });
    start
        .filter(|start| start.len() <= LONGEST_START)
        .map(|start| Page { entries, next: Some(start), total })
        .ok_or_else(|| malformed(format!("the link to the next page has no start: {}", next.href)))
}

/// Parses a link, which may be relative.
fn parse_link(href: &str) -> Option<Url> {
    Url::parse("https://localhost/").ok()?.join(href).ok()
}

impl RegionClient {
    /// Returns all entries of a list with `filters`, page by page. A missing link to a next page does not
    /// prove that the list is complete: if the API reports a total, the entries are counted against it. The
    /// API's documentation does not define if the total takes account of filters, so a filtered list counts
    /// as short only if its last page is full.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        key: &str,
        filters: &[(&str, String)],
    ) -> Result<Vec<T>, VpcError> {
        let mut attempt = 1;
        loop {
            let Pages { all, min_total, last_len, request } = self.pages(path, key, filters).await?;
            let count = to_u64(all.len());
            match min_total {
                Some(min_total) if count < min_total && (filters.is_empty() || last_len >= PAGE) => {
                    if attempt == MAX_READS {
                        let reason = format!(
                            "the list {key:?} has {min_total} entries by its own count, and ended after {count}"
                        );
                        return Err(VpcError::Malformed { request, reason });
                    }
                    attempt += 1;
                }
                _ => return Ok(all),
            }
        }
    }

    /// Reads all pages once.
    async fn pages<T: DeserializeOwned>(
        &self,
        path: &[&str],
        key: &str,
        filters: &[(&str, String)],
    ) -> Result<Pages<T>, VpcError> {
        let mut all = Vec::new();
        let mut min_total: Option<u64> = None;
        let mut start: Option<String> = None;
        let mut starts = HashSet::new();
        for _ in 0..MAX_PAGES {
            let mut call = ApiRequest::get(path).query("limit", PAGE.to_string());
            for (name, value) in filters {
                call = call.query(name, value);
            }
            if let Some(start) = start.take() {
                call = call.query("start", start);
            }
            let response = self.client.send(&call).await?;
            let Page { entries, next, total } = page::<T>(&response, key)?;
            let last_len = u32::try_from(entries.len()).unwrap_or(u32::MAX);
            all.extend(entries);
            min_total = min_total.into_iter().chain(total).min();
            let Some(next) = next else {
                return Ok(Pages { all, min_total, last_len, request: response.request });
            };
            if !starts.insert(next.clone()) {
                let reason = format!("the list {key:?} leads back to a page that was there already");
                return Err(VpcError::Malformed { request: response.request, reason });
            }
            start = Some(next);
        }
        Err(VpcError::Setup(format!("the list {key:?} has more than {MAX_PAGES} pages")))
    }

    /// Returns all entries of a list that the API returns in one response, or in pages if the API has
    /// changed.
    pub(super) async fn unpaged_list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        key: &str,
    ) -> Result<Vec<T>, VpcError> {
        let response = self.client.send(&ApiRequest::get(path)).await?;
        let Page { entries, next, total } = page(&response, key)?;
        if next.is_some() {
            return self.list(path, key, &[]).await;
        }
        let count = to_u64(entries.len());
        if let Some(total) = total.filter(|&total| count < total) {
            let reason =
                format!("the list {key:?} has {total} entries by its own count, and ended after {count}");
            return Err(VpcError::Malformed { request: response.request, reason });
        }
        Ok(entries)
    }

    /// Returns the entry with that name. The API filters by exact name. The result is checked all the same,
    /// since the API ignores a filter that it does not know.
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
        Ok(found.into_iter().find(|entry| name_of(entry) == name))
    }
}
