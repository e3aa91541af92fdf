//! Global Tagging: user tags of resources, by their CRNs.

use serde_json::{Value, json};

use super::request::{ApiError, ApiRequest, ApiResponse};
use super::route::RegionOperation;
use super::state::CloudState;

fn texts<'a>(
    request: &'a ApiRequest,
    pointer: &str,
    each: impl Fn(&'a Value) -> Option<&'a str>,
) -> Result<Vec<&'a str>, ApiError> {
    let list = request.body.pointer(pointer).and_then(Value::as_array);
    let texts: Option<Vec<&str>> = list.and_then(|list| list.iter().map(each).collect());
    texts
        .filter(|texts| !texts.is_empty())
        .ok_or_else(|| ApiError::new(400, "TagsBadRequest", "The request is not complete."))
}

pub(super) fn change(
    cloud: &mut CloudState,
    operation: RegionOperation,
    request: &ApiRequest,
) -> Result<ApiResponse, ApiError> {
    let resources = texts(request, "/resources", |resource| resource["resource_id"].as_str())?;
    let names = texts(request, "/tag_names", Value::as_str)?;
    let mut results = Vec::new();
    for crn in resources {
        // A resource that does not exist is an error within a response of 200.
        let id = crn.rsplit(':').next().unwrap_or_default().to_owned();
        let known = cloud.life(&id).is_some();
        if known {
            let tags = cloud.tags.entry(crn.to_owned()).or_default();
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
    Ok(ApiResponse::ok(json!({ "results": results })))
}

pub(super) fn list(cloud: &CloudState, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
    let tags = match request.query("attached_to") {
        Some(crn) => cloud.tags.get(crn).cloned().unwrap_or_default(),
        None => cloud.tags.values().flatten().cloned().collect(),
    };
    let items: Vec<Value> = tags.iter().map(|tag| json!({ "name": tag })).collect();
    Ok(ApiResponse::ok(json!({ "total_count": items.len(), "offset": 0, "limit": 1000, "items": items })))
}
