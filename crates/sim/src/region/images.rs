//! Custom images of the account.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::timestamp::Timestamp;
use super::catalog::{self, crn, regional_id, resource_group};
use super::config::RegionConfig;
use super::jobs::Job;
use super::lifecycle::{Lifecycle, Turn};
use super::lists::page;
use super::request::{ApiError, ApiRequest, ApiResponse, href};
use super::state::Region;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Image {
    pub life: Lifecycle,
    /// Object that it was imported from, as `cos://location/bucket/key`.
    pub href: Option<String>,
    pub source_volume: Option<String>,
    pub operating_system: String,
    pub sha256: Option<String>,
    /// Size of the file, in GB.
    pub file_size: Option<u64>,
    /// Size of the disk, in GB.
    pub minimum_size: Option<u64>,
    pub deprecation_at: Option<String>,
    pub obsolescence_at: Option<String>,
}

/// Splits `cos://location/bucket/key` into its parts.
fn parts(href: &str) -> Option<(&str, &str, &str)> {
    let (location, rest) = href.strip_prefix("cos://")?.split_once('/')?;
    let (bucket, key) = rest.split_once('/')?;
    (!location.is_empty() && !bucket.is_empty() && !key.is_empty()).then_some((location, bucket, key))
}

impl Image {
    /// Returns the bucket and key of the object that it was imported from.
    pub fn source(&self) -> Option<(String, String)> {
        let (_, bucket, key) = parts(self.href.as_deref()?)?;
        Some((bucket.to_owned(), key.to_owned()))
    }

    /// Returns the path of the image service's own copy.
    pub fn file_path(folder: &Path, id: &str) -> PathBuf {
        folder.join("images").join(format!("{id}.qcow2"))
    }
}

impl Region {
    fn show_image(&self, base: &str, image: &Image) -> Value {
        let (life, region) = (&image.life, &self.catalog.region);
        let mut file = json!({});
        if let Some(size) = image.file_size {
            file["size"] = json!(size);
        }
        if let Some(sha256) = &image.sha256 {
            file["checksums"] = json!({ "sha256": sha256 });
        }
        let mut shown = json!({
            "id": life.id,
            "crn": crn(region, "image", &life.id),
            "name": life.name,
            "href": href(base, &format!("images/{}", life.id)),
            "created_at": life.created.to_rfc3339(),
            "resource_type": "image",
            "resource_group": resource_group(),
            "status": life.state,
            "status_reasons": life.reasons(),
            "visibility": "private",
            "owner_type": "user",
            "encryption": "none",
            "file": file,
            "allowed_use": { "api_version": "2026-03-24", "bare_metal_server": "true", "instance": "true" },
            "catalog_offering": { "managed": false },
            "operating_system": catalog::operating_system(base, &image.operating_system),
            "user_data_format": "cloud_init",
            "zones": [],
        });
        if let Some(size) = image.minimum_size {
            shown["minimum_provisioned_size"] = json!(size);
        }
        if let Some(at) = &image.deprecation_at {
            shown["deprecation_at"] = json!(at);
        }
        if let Some(at) = &image.obsolescence_at {
            shown["obsolescence_at"] = json!(at);
        }
        if let Some(volume) = image.source_volume.as_deref().and_then(|id| self.volume_reference(base, id)) {
            shown["source_volume"] = volume;
        }
        shown
    }

    pub(super) fn seed_images(&mut self, count: usize) {
        let now = Timestamp::now();
        for number in 0..count {
            let id = regional_id(&self.catalog.region);
            let image = Image {
                life: Lifecycle::new(id.clone(), format!("image-{number:04}"), "available", now),
                href: None,
                source_volume: None,
                operating_system: "debian-12-amd64".to_owned(),
                sha256: None,
                file_size: Some(1),
                minimum_size: Some(10),
                deprecation_at: None,
                obsolescence_at: None,
            };
            self.images.insert(id, image);
        }
    }

    pub(super) fn list_images(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let states: Option<Vec<&str>> = request.query("status").map(|states| states.split(',').collect());
        // All images belong to the account and are private.
        let others = request.query("visibility") == Some("public")
            || request.query("remote.account.id").is_some_and(|id| id != "null")
            || request.query("user_data_format").is_some_and(|format| format != "cloud_init");
        let images = self.images.values().filter(|image| {
            !others && states.as_ref().is_none_or(|states| states.contains(&image.life.state.as_str()))
        });
        page(
            request,
            "images",
            "images",
            images.map(|image| (&image.life, self.show_image(&request.base, image))).collect(),
        )
    }

    pub(super) fn image(&self, id: &str) -> Result<&Image, ApiError> {
        self.images.get(id).ok_or_else(|| ApiError::not_found("image", id))
    }

    pub(super) fn get_image(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        Ok(ApiResponse::ok(self.show_image(&request.base, self.image(request.id(0))?)))
    }

    fn check_image_name(&self, name: &str, own: &str) -> Result<(), ApiError> {
        if name.starts_with("ibm-") {
            return Err(ApiError::field(
                400,
                "validation_invalid_name",
                "name",
                "Names that begin with ibm- are IBM's.",
            ));
        }
        if self.images.values().any(|image| image.life.name == name && image.life.id != own) {
            return Err(ApiError::name_taken(name));
        }
        Ok(())
    }

    pub(super) fn create_image(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
        jobs: &mut Vec<Job>,
    ) -> Result<ApiResponse, ApiError> {
        let name = request.name()?;
        self.check_image_name(&name, "")?;
        let id = regional_id(&self.catalog.region);
        let mut life = Lifecycle::new(id.clone(), name, "pending", request.now)
            .then("available", request.now.after(config.delays.image));
        life.reasons = vec![("image_request_queued".to_owned(), "The request is queued.".to_owned())];
        let image = match request.text("/source_volume/id") {
            Some(volume) => self.image_of_volume(volume, life)?,
            None => self.image_of_file(request, config, life)?,
        };
        if image.life.work > 0 {
            jobs.push(Job::import(&self.catalog.region, &id));
        }
        let response = ApiResponse::created(self.show_image(&request.base, &image), &id);
        self.images.insert(id, image);
        Ok(response)
    }

    fn image_of_file(
        &self,
        request: &ApiRequest,
        config: &RegionConfig,
        mut life: Lifecycle,
    ) -> Result<Image, ApiError> {
        let href = request.required("/file/href")?;
        let wrong = |code: &str, message: &str| ApiError::field(400, code, "file.href", message);
        let (location, bucket, key) =
            parts(href).ok_or_else(|| wrong("bad_field", "The address is cos://LOCATION/BUCKET/KEY."))?;
        if !key.ends_with(".qcow2") && !key.ends_with(".vhd") {
            return Err(wrong("cos_invalid_file_extension", "The file's name must end with .qcow2 or .vhd."));
        }
        if config.bucket_locations.get(bucket).is_some_and(|real| real != location) {
            return Err(wrong("bad_field", "The bucket is in another location."));
        }
        if !config.image_service_authorized {
            // IBM publishes no code for this; its documentation says that the import fails.
            return Err(wrong("cos_unauthorized", "The image service is not authorized to read the bucket."));
        }
        let os = request.required("/operating_system/name")?;
        let os_entry = catalog::operating_system(&request.base, os);
        let os_entry = os_entry.ok_or_else(|| {
            ApiError::field(400, "bad_field", "operating_system.name", "There is no such operating system.")
        })?;
        if os_entry["allow_user_image_creation"] != json!(true) {
            return Err(ApiError::field(
                400,
                "bad_field",
                "operating_system.name",
                "Users may not import this operating system.",
            ));
        }
        life.work = 1;
        Ok(Image {
            life,
            href: Some(href.to_owned()),
            source_volume: None,
            operating_system: os.to_owned(),
            sha256: None,
            file_size: None,
            minimum_size: None,
            deprecation_at: request.text("/deprecation_at").map(str::to_owned),
            obsolescence_at: request.text("/obsolescence_at").map(str::to_owned),
        })
    }

    /// Creates an image of a volume. As IBM demands, it must be the boot volume of a stopped server.
    fn image_of_volume(&self, id: &str, life: Lifecycle) -> Result<Image, ApiError> {
        let volume = self.volumes.get(id).ok_or_else(|| ApiError::not_found("volume", id))?;
        let wrong = |message: &str| ApiError::field(400, "invalid_state", "source_volume.id", message);
        let attachment =
            self.attachments.values().find(|attachment| attachment.boot && attachment.volume == id);
        let server = attachment.and_then(|attachment| self.instances.get(&attachment.instance));
        let server = server.ok_or_else(|| wrong("The volume is not the boot volume of an instance."))?;
        if server.life.state != "stopped" {
            return Err(wrong("The instance must be stopped."));
        }
        let os =
            volume.operating_system.clone().ok_or_else(|| wrong("The volume has no operating system."))?;
        Ok(Image {
            life,
            href: None,
            source_volume: Some(id.to_owned()),
            operating_system: os,
            sha256: None,
            file_size: None,
            minimum_size: Some(volume.capacity.max(100)),
            deprecation_at: None,
            obsolescence_at: None,
        })
    }

    pub(super) fn update_image(&mut self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let name = request.text("/name").map(|_| request.name()).transpose()?;
        if let Some(name) = &name {
            self.check_image_name(name, request.id(0))?;
        }
        let image =
            self.images.get_mut(request.id(0)).ok_or_else(|| ApiError::not_found("image", request.id(0)))?;
        if image.life.state == "deleting" {
            return Err(ApiError::conflict("invalid_state", "The image is being deleted."));
        }
        if let Some(name) = name {
            image.life.name = name;
        }
        for (field, target) in
            [("deprecation_at", &mut image.deprecation_at), ("obsolescence_at", &mut image.obsolescence_at)]
        {
            if let Some(value) = request.body.get(field) {
                *target = value.as_str().map(str::to_owned);
            }
        }
        image.life.version += 1;
        Ok(self.get_image(request)?.resource_id(request.id(0)))
    }

    pub(super) fn age_image(&mut self, request: &ApiRequest, state: &str) -> Result<ApiResponse, ApiError> {
        let image =
            self.images.get_mut(request.id(0)).ok_or_else(|| ApiError::not_found("image", request.id(0)))?;
        let allowed = match state {
            "deprecated" => image.life.state == "available",
            _ => matches!(image.life.state.as_str(), "available" | "deprecated"),
        };
        if !allowed {
            return Err(ApiError::conflict(
                "invalid_state",
                &format!("An image that is {} can't be {state}.", image.life.state),
            ));
        }
        image.life.set_final_state(state);
        Ok(ApiResponse::empty(204, request.id(0)))
    }

    pub(super) fn delete_image(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
    ) -> Result<ApiResponse, ApiError> {
        let image =
            self.images.get_mut(request.id(0)).ok_or_else(|| ApiError::not_found("image", request.id(0)))?;
        if image.life.state == "deleting" {
            return Err(ApiError::conflict("invalid_state", "The image is being deleted."));
        }
        // A queued import can still be cancelled, a running one can't.
        if image.life.reasons.iter().any(|(code, _)| code == "image_request_in_progress") {
            return Err(ApiError::conflict("invalid_state", "The image is being imported."));
        }
        image.life.work = 0;
        image.life.enter("deleting", request.now.after(config.delays.deletion), Turn::Gone);
        Ok(ApiResponse::empty(202, request.id(0)))
    }
}
