//! Lists of the API: filters, order, pages.

use std::cmp::Ordering;

use serde_json::{Value, json};

use super::super::timestamp::Timestamp;
use super::lifecycle::Lifecycle;
use super::request::{ApiError, ApiRequest, ApiResponse};

/// Entries on a page if the client sets no limit. IBM's examples show pages of 50, and 100 is the most that
/// its own clients request.
const PAGE: usize = 50;
const LARGEST_PAGE: usize = 100;

/// Entry of a list: its lifecycle, and the JSON that the API shows.
pub(super) type Listed<'a> = (&'a Lifecycle, Value);

/// Returns one page of `entries` as the response to `request`, with the API's links. The caller has applied
/// all filters but those for the name and the resource group.
pub(super) fn page(
    request: &ApiRequest,
    path: &str,
    key: &str,
    mut entries: Vec<Listed<'_>>,
) -> Result<ApiResponse, ApiError> {
    entries.retain(|(life, shown)| {
        // Everything here belongs to one resource group.
        let group = shown.pointer("/resource_group/id").and_then(Value::as_str);
        life.listed_from <= request.now
            && request.query("name").is_none_or(|name| name == life.name)
            && request.query("resource_group.id").is_none_or(|id| group == Some(id))
    });
    // The newest comes first, as in the API; the id makes the order definite.
    entries.sort_by(|(a, _), (b, _)| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    if request.query("sort") == Some("created_at") {
        entries.reverse();
    }
    let limit = match request.query("limit").map(str::parse::<usize>) {
        None => PAGE,
        Some(Ok(limit)) if (1..=LARGEST_PAGE).contains(&limit) => limit,
        Some(_) => {
            return Err(ApiError::parameter(400, "bad_field", "limit", "The limit is 1 to 100."));
        }
    };
    let total = entries.len();
    let oldest_first = request.query("sort") == Some("created_at");
    let from = match request.query("start") {
        None => 0,
        Some(start) => {
            let wrong =
                || ApiError::parameter(400, "bad_field", "start", "The start is none that a page has given.");
            let (created, id) = start.split_once('.').ok_or_else(wrong)?;
            let created: Timestamp = created.parse().map_err(|_| wrong())?;
            // By its place in the order, not by the thing itself, which may have been deleted since.
            let reached = |life: &Lifecycle| match life.created.cmp(&created) {
                Ordering::Equal => {
                    if oldest_first {
                        life.id.as_str() <= id
                    } else {
                        life.id.as_str() >= id
                    }
                }
                order => (order == Ordering::Greater) == oldest_first,
            };
            entries.iter().position(|(life, _)| reached(life)).unwrap_or(entries.len())
        }
    };
    let link = |start: Option<&str>| {
        let mut query: Vec<String> = request
            .query
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "start" | "limit" | "version" | "generation"))
            .map(|(name, value)| format!("{name}={}", encoded(value)))
            .collect();
        query.push(format!("limit={limit}"));
        if let Some(start) = start {
            query.push(format!("start={}", encoded(start)));
        }
        json!({ "href": format!("{}?{}", request.href(path), query.join("&")) })
    };
    let next =
        entries.get(from + limit).map(|(life, _)| link(Some(&format!("{}.{}", life.created, life.id))));
    let shown: Vec<Value> = entries.into_iter().skip(from).take(limit).map(|(_, shown)| shown).collect();
    let mut body = json!({ "first": link(None), "limit": limit, "total_count": total, key: shown });
    if let Some(next) = next {
        body["next"] = next;
    }
    Ok(ApiResponse::ok(body))
}

/// Returns a list without pages.
pub(super) fn unpaged(request: &ApiRequest, key: &str, mut entries: Vec<Listed<'_>>) -> ApiResponse {
    entries.retain(|(life, _)| life.listed_from <= request.now);
    ApiResponse::ok(json!({ key: entries.into_iter().map(|(_, shown)| shown).collect::<Vec<_>>() }))
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
