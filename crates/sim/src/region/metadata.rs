//! Instance metadata service of the server that snapferry would run on.

use std::time::Duration;

use hyper::header::AUTHORIZATION;
use serde_json::json;

use super::super::timestamp::Timestamp;
use super::catalog::{crn, resource_group};
use super::front::Front;
use super::request::{ApiError, ApiRequest, ApiResponse};
use super::route::RegionOperation as Op;
use super::state::CloudState;

/// First API version with the service's new paths.
const NEW_PATHS: &str = "2025-08-26";
/// Lifetime of an identity token in seconds, if the request sets none.
const DEFAULT_LIFE: u64 = 300;
/// Longest lifetime of an identity token, in seconds.
const LONGEST_LIFE: u64 = 3600;

/// Checks that the service is on and has the path in the requested version. IBM's service does not respond at
/// all if it is off; this one responds 404, so that it differs from a service that is not there.
fn check(front: &Front, operation: Op, request: &ApiRequest) -> Result<(), ApiError> {
    let new = matches!(operation, Op::CreateIdentityToken | Op::CreateIamToken);
    let version = request.query("version").unwrap_or_default();
    let fits =
        if new { front.config.new_metadata_paths && version >= NEW_PATHS } else { version < NEW_PATHS };
    if !front.config.metadata_service || !fits {
        return Err(ApiError::new(404, "not_found", "There is nothing at this address and version."));
    }
    Ok(())
}

/// Issues an identity token. The header proves that the server itself sent the request: a proxy would not set
/// it.
pub(super) fn identity_token(
    front: &Front,
    operation: Op,
    request: &ApiRequest,
) -> Result<ApiResponse, ApiError> {
    check(front, operation, request)?;
    if request.headers.get("metadata-flavor").is_none_or(|flavor| flavor != "ibm") {
        return Err(ApiError::header(400, "missing_header", "Metadata-Flavor", "The header is required."));
    }
    let life = request.number("/expires_in").unwrap_or(DEFAULT_LIFE);
    if !(5..=LONGEST_LIFE).contains(&life) {
        return Err(ApiError::field(400, "bad_field", "expires_in", "A token lives 5 to 3600 seconds."));
    }
    let life = Duration::from_secs(life).min(front.config.token_life);
    Ok(ApiResponse::ok(token(&front.iam.mint_identity(life), life, request.now)))
}

/// Returns a token in the JSON of the service.
fn token(text: &str, life: Duration, now: Timestamp) -> serde_json::Value {
    json!({
        "access_token": text,
        "created_at": now.to_rfc3339(),
        "expires_at": now.after(life).to_rfc3339(),
        "expires_in": life.as_secs(),
    })
}

fn check_identity(front: &Front, request: &ApiRequest) -> Result<(), ApiError> {
    let token =
        request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    match token {
        Some(token) if front.iam.accepts_identity(token) => Ok(()),
        _ => Err(ApiError::header(401, "token_invalid", "Authorization", "An identity token is required.")),
    }
}

pub(super) fn iam_token(front: &Front, operation: Op, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
    check(front, operation, request)?;
    check_identity(front, request)?;
    let life = front.config.token_life;
    Ok(ApiResponse::ok(token(&front.iam.mint(life), life, request.now)))
}

pub(super) fn own_instance(
    front: &Front,
    cloud: &CloudState,
    request: &ApiRequest,
) -> Result<ApiResponse, ApiError> {
    check_identity(front, request)?;
    let missing = || ApiError::new(404, "not_found", "There is no such server.");
    let name = front.config.regions.first().ok_or_else(missing)?;
    let region = cloud.regions.get(name).ok_or_else(missing)?;
    let own = region
        .instances
        .values()
        .find(|instance| instance.life.name == front.config.own_server)
        .ok_or_else(missing)?;
    let base = format!("{}/{name}", front.url);
    let mut shown = region.show_instance(&base, own);
    shown["crn"] = json!(crn(&own.zone, "instance", &own.life.id));
    shown["resource_group"] = resource_group();
    Ok(ApiResponse::ok(shown))
}

pub(super) fn own_attachments(
    front: &Front,
    cloud: &CloudState,
    request: &ApiRequest,
) -> Result<ApiResponse, ApiError> {
    let own = own_instance(front, cloud, request)?;
    let attachments = own.body.map(|mut own| own["volume_attachments"].take());
    Ok(ApiResponse::ok(json!({ "volume_attachments": attachments })))
}
