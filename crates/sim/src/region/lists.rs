//! Lists of the API: filters, order, pages.

use std::cmp::Ordering;

use serde_json::{Value, json};

use super::super::moment::Moment;
use super::ask::{Answer, Ask, Refused};
use super::life::Lifecycle;

/// Entries on a page if the client sets no limit. IBM's examples show pages of 50, and 100 is the most that
/// its own clients request.
const PAGE: usize = 50;
const LARGEST_PAGE: usize = 100;

/// Entry of a list: its lifecycle, and the JSON that the API shows.
pub(super) type Listed<'a> = (&'a Lifecycle, Value);

/// Returns one page of `things` as the response to `ask`, with the API's links. The caller has applied all
/// filters but those for the name and the resource group.
pub(super) fn page(ask: &Ask, path: &str, key: &str, mut things: Vec<Listed<'_>>) -> Result<Answer, Refused> {
    things.retain(|(life, shown)| {
        // Everything here belongs to one resource group.
        let group = shown.pointer("/resource_group/id").and_then(Value::as_str);
        life.listed_from <= ask.now
            && ask.query("name").is_none_or(|name| name == life.name)
            && ask.query("resource_group.id").is_none_or(|id| group == Some(id))
    });
    // The newest comes first, as in the API; the id makes the order definite.
    things.sort_by(|(a, _), (b, _)| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    if ask.query("sort") == Some("created_at") {
        things.reverse();
    }
    let limit = match ask.query("limit").map(str::parse::<usize>) {
        None => PAGE,
        Some(Ok(limit)) if (1..=LARGEST_PAGE).contains(&limit) => limit,
        Some(_) => {
            return Err(Refused::parameter(400, "bad_field", "limit", "The limit is 1 to 100."));
        }
    };
    let total = things.len();
    let oldest_first = ask.query("sort") == Some("created_at");
    let from = match ask.query("start") {
        None => 0,
        Some(start) => {
            let wrong =
                || Refused::parameter(400, "bad_field", "start", "The start is none that a page has given.");
            let (created, id) = start.split_once('.').ok_or_else(wrong)?;
            let created: Moment = created.parse().map_err(|_| wrong())?;
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
            things.iter().position(|(life, _)| reached(life)).unwrap_or(things.len())
        }
    };
    let link = |start: Option<&str>| {
        let mut query: Vec<String> = ask
            .query
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "start" | "limit" | "version" | "generation"))
            .map(|(name, value)| format!("{name}={}", encoded(value)))
            .collect();
        query.push(format!("limit={limit}"));
        if let Some(start) = start {
            query.push(format!("start={}", encoded(start)));
        }
        json!({ "href": format!("{}?{}", ask.href(path), query.join("&")) })
    };
    let next = things.get(from + limit).map(|(life, _)| link(Some(&format!("{}.{}", life.created, life.id))));
    let shown: Vec<Value> = things.into_iter().skip(from).take(limit).map(|(_, shown)| shown).collect();
    let mut body = json!({ "first": link(None), "limit": limit, "total_count": total, key: shown });
    if let Some(next) = next {
        body["next"] = next;
    }
    Ok(Answer::ok(body))
}

/// Returns a list without pages.
pub(super) fn whole(ask: &Ask, key: &str, mut things: Vec<Listed<'_>>) -> Answer {
    things.retain(|(life, _)| life.listed_from <= ask.now);
    Answer::ok(json!({ key: things.into_iter().map(|(_, shown)| shown).collect::<Vec<_>>() }))
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
