//! Attachments of volumes to servers.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::timestamp::Timestamp;
use super::catalog::{crn, zonal_id};
use super::config::RegionConfig;
use super::lifecycle::{Lifecycle, Turn};
use super::lists::unpaged;
use super::request::{ApiError, ApiRequest, ApiResponse, checked_name, href};
use super::state::Region;

/// Highest number of data volumes on one server.
const MAX_DATA_VOLUMES: usize = 12;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Attachment {
    pub life: Lifecycle,
    pub instance: String,
    pub volume: String,
    pub boot: bool,
    pub delete_volume: bool,
    /// Serial number of the device.
    pub device: String,
    /// Time at which the device's link appears.
    pub linked_from: Timestamp,
}

impl Attachment {
    pub fn kind(&self) -> &'static str {
        if self.boot { "boot" } else { "data" }
    }

    /// Returns the device as the API shows it; `None` before it is attached.
    pub fn device(&self) -> Option<Value> {
        matches!(self.life.state.as_str(), "attached" | "detaching").then(|| json!({ "id": self.device }))
    }

    /// Returns the name of its link. A serial number of virtio has 20 bytes.
    pub fn link(&self) -> String {
        format!("virtio-{}", self.device.get(..20).unwrap_or(&self.device))
    }
}

impl Region {
    pub(super) fn volume_reference(&self, base: &str, id: &str) -> Option<Value> {
        let volume = self.volumes.get(id)?;
        Some(json!({
            "id": id,
            "name": volume.life.name,
            "crn": crn(&volume.zone, "volume", id),
            "href": href(base, &format!("volumes/{id}")),
            "resource_type": "volume",
        }))
    }

    pub(super) fn show_attachment(&self, base: &str, attachment: &Attachment) -> Value {
        let life = &attachment.life;
        let mut shown = json!({
            "id": life.id,
            "name": life.name,
            "href": href(base, &format!("instances/{}/volume_attachments/{}", attachment.instance, life.id)),
            "created_at": life.created.to_rfc3339(),
            "status": life.state,
            "type": attachment.kind(),
            "bandwidth": 393,
            "delete_volume_on_instance_delete": attachment.delete_volume,
        });
        if let Some(device) = attachment.device() {
            shown["device"] = device;
        }
        if let Some(volume) = self.volume_reference(base, &attachment.volume) {
            shown["volume"] = volume;
        }
        shown
    }

    fn server_exists(&self, request: &ApiRequest) -> Result<(), ApiError> {
        match self.instances.contains_key(request.id(0)) {
            true => Ok(()),
            false => Err(ApiError::not_found("instance", request.id(0))),
        }
    }

    pub(super) fn list_attachments(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        self.server_exists(request)?;
        let own = self.attachments.values().filter(|attachment| attachment.instance == request.id(0));
        Ok(unpaged(
            request,
            "volume_attachments",
            own.map(|own| (&own.life, self.show_attachment(&request.base, own))).collect(),
        ))
    }

    fn attachment_of(&self, request: &ApiRequest) -> Result<&Attachment, ApiError> {
        let found =
            self.attachments.get(request.id(1)).filter(|attachment| attachment.instance == request.id(0));
        found.ok_or_else(|| ApiError::not_found("volume_attachment", request.id(1)))
    }

    pub(super) fn get_attachment(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        Ok(ApiResponse::ok(self.show_attachment(&request.base, self.attachment_of(request)?)))
    }

    pub(super) fn create_attachment(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
    ) -> Result<ApiResponse, ApiError> {
        self.server_exists(request)?;
        let Some(server) = self.instances.get(request.id(0)) else {
            return Err(ApiError::not_found("instance", request.id(0)));
        };
        // As in the API, a name is made up if the request has none.
        let name = match request.text("/name") {
            Some(name) => checked_name(name)?,
            None => format!("attachment-{}", self.attachments.len()),
        };
        let id = request.required("/volume/id")?;
        let volume = self.volumes.get(id).ok_or_else(|| ApiError::not_found("volume", id))?;
        let others = || self.attachments.values().filter(|attachment| attachment.instance == request.id(0));
        if others().any(|attachment| attachment.life.name == name) {
            return Err(ApiError::name_taken(&name));
        }
        if others().filter(|attachment| !attachment.boot).count() >= MAX_DATA_VOLUMES {
            return Err(ApiError::new(400, "over_quota", "The instance has as many volumes as it can have."));
        }
        if volume.zone != server.zone {
            return Err(ApiError::field(
                400,
                "bad_field",
                "volume.id",
                "The volume is in another zone than the instance.",
            ));
        }
        if volume.life.state != "available" {
            return Err(ApiError::field(400, "invalid_state", "volume.id", "The volume is not available."));
        }
        if self.attachments.values().any(|attachment| attachment.volume == id) {
            return Err(ApiError::conflict("volume_in_use", "The volume is attached already."));
        }
        let region = self.catalog.region.clone();
        let device = format!("{}-{}", zonal_id(&region, &server.zone), "x1b2c");
        let attached = request.now.after(config.delays.attachment);
        let life = Lifecycle::new(zonal_id(&region, &server.zone), name, "attaching", request.now)
            .then("attached", attached);
        let delete_volume =
            request.body.get("delete_volume_on_instance_delete").and_then(Value::as_bool).unwrap_or(false);
        let attachment = Attachment {
            instance: request.id(0).to_owned(),
            volume: id.to_owned(),
            boot: false,
            delete_volume,
            device,
            linked_from: attached.after(config.delays.udev),
            life,
        };
        let id = attachment.life.id.clone();
        let response = ApiResponse::created(self.show_attachment(&request.base, &attachment), &id);
        self.attachments.insert(id, attachment);
        Ok(response)
    }

    pub(super) fn delete_attachment(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
    ) -> Result<ApiResponse, ApiError> {
        self.attachment_of(request)?;
        let Some(attachment) = self.attachments.get_mut(request.id(1)) else {
            return Err(ApiError::not_found("volume_attachment", request.id(1)));
        };
        if attachment.boot {
            return Err(ApiError::conflict(
                "volume_attachment_boot",
                "A boot volume can't be detached from a running instance.",
            ));
        }
        if attachment.life.state == "detaching" {
            return Err(ApiError::conflict("invalid_state", "The volume is being detached."));
        }
        // The volume stays, whatever `delete_volume_on_instance_delete` says.
        attachment.life.enter("detaching", request.now.after(config.delays.attachment), Turn::Gone);
        Ok(ApiResponse::empty(204, request.id(1)))
    }
}
