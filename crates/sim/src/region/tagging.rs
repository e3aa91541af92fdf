//! Global Tagging: user tags of resources, by their CRNs.

use serde_json::{Value, json};

use super::ask::{Answer, Ask, Refused};
use super::route::RegionOperation;
use super::world::RegionState;

fn texts<'a>(
    ask: &'a Ask,
    pointer: &str,
    each: impl Fn(&'a Value) -> Option<&'a str>,
) -> Result<Vec<&'a str>, Refused> {
    let list = ask.body.pointer(pointer).and_then(Value::as_array);
    let texts: Option<Vec<&str>> = list.and_then(|list| list.iter().map(each).collect());
    texts
        .filter(|texts| !texts.is_empty())
        .ok_or_else(|| Refused::new(400, "TagsBadRequest", "The request is not complete."))
}

pub(super) fn change(
    world: &mut RegionState,
    operation: RegionOperation,
    ask: &Ask,
) -> Result<Answer, Refused> {
    let resources = texts(ask, "/resources", |resource| resource["resource_id"].as_str())?;
    let names = texts(ask, "/tag_names", Value::as_str)?;
    let mut results = Vec::new();
    for crn in resources {
        // A resource that does not exist is an error within a response of 200.
        let id = crn.rsplit(':').next().unwrap_or_default().to_owned();
        let known = world.life(&id).is_some();
        if known {
            let tags = world.tags.entry(crn.to_owned()).or_default();
            for name in &names {
                let name = name.to_ascii_lowercase();
                tags.retain(|tag| *tag != name);
                if operation == RegionOperation::AttachTag {
                    tags.push(name);
                }
            }
        }
        let mut result = json!({ "resource_id": crn, "is_error": !known });
        if !known {
            result["message"] = json!("The resource does not exist.");
        }
        results.push(result);
    }
    Ok(Answer::ok(json!({ "results": results })))
}

pub(super) fn list(world: &RegionState, ask: &Ask) -> Result<Answer, Refused> {
    let tags = match ask.query("attached_to") {
        Some(crn) => world.tags.get(crn).cloned().unwrap_or_default(),
        None => world.tags.values().flatten().cloned().collect(),
    };
    let items: Vec<Value> = tags.iter().map(|tag| json!({ "name": tag })).collect();
    Ok(Answer::ok(json!({ "total_count": items.len(), "offset": 0, "limit": 1000, "items": items })))
}
