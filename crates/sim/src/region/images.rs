//! Custom images of the account.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::moment::Moment;
use super::ask::{Answer, Ask, Refused, href};
use super::catalog::{self, crn, regional_id, resource_group};
use super::config::RegionConfig;
use super::jobs::Job;
use super::life::{Lifecycle, Turn};
use super::lists::page;
use super::world::Region;

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
    pub fn kept(folder: &Path, id: &str) -> PathBuf {
        folder.join("images").join(format!("{id}.qcow2"))
    }
}

impl Region {
    fn show_image(&self, base: &str, image: &Image) -> Value {
        let (life, region) = (&image.life, &self.furniture.region);
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
            "created_at": life.created.shown(),
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
        let now = Moment::now();
        for number in 0..count {
            let id = regional_id(&self.furniture.region);
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

    pub(super) fn list_images(&self, ask: &Ask) -> Result<Answer, Refused> {
        let states: Option<Vec<&str>> = ask.query("status").map(|states| states.split(',').collect());
        // All images belong to the account and are private.
        let others = ask.query("visibility") == Some("public")
            || ask.query("remote.account.id").is_some_and(|id| id != "null")
            || ask.query("user_data_format").is_some_and(|format| format != "cloud_init");
        let images = self.images.values().filter(|image| {
            !others && states.as_ref().is_none_or(|states| states.contains(&image.life.state.as_str()))
        });
        page(
            ask,
            "images",
            "images",
            images.map(|image| (&image.life, self.show_image(&ask.base, image))).collect(),
        )
    }

    pub(super) fn image(&self, id: &str) -> Result<&Image, Refused> {
        self.images.get(id).ok_or_else(|| Refused::not_found("image", id))
    }

    pub(super) fn get_image(&self, ask: &Ask) -> Result<Answer, Refused> {
        Ok(Answer::ok(self.show_image(&ask.base, self.image(ask.id(0))?)))
    }

    fn check_image_name(&self, name: &str, own: &str) -> Result<(), Refused> {
        if name.starts_with("ibm-") {
            return Err(Refused::field(
                400,
                "validation_invalid_name",
                "name",
                "Names that begin with ibm- are IBM's.",
            ));
        }
        if self.images.values().any(|image| image.life.name == name && image.life.id != own) {
            return Err(Refused::name_taken(name));
        }
        Ok(())
    }

    pub(super) fn create_image(
        &mut self,
        ask: &Ask,
        config: &RegionConfig,
        jobs: &mut Vec<Job>,
    ) -> Result<Answer, Refused> {
        let name = ask.name()?;
        self.check_image_name(&name, "")?;
        let id = regional_id(&self.furniture.region);
        let mut life = Lifecycle::new(id.clone(), name, "pending", ask.now)
            .turns("available", ask.now.after(config.delays.image));
        life.reasons = vec![("image_request_queued".to_owned(), "The request is queued.".to_owned())];
        let image = match ask.text("/source_volume/id") {
            Some(volume) => self.image_of_volume(volume, life)?,
            None => self.image_of_file(ask, config, life)?,
        };
        if image.life.work > 0 {
            jobs.push(Job::import(&self.furniture.region, &id));
        }
        let answer = Answer::created(self.show_image(&ask.base, &image), &id);
        self.images.insert(id, image);
        Ok(answer)
    }

    fn image_of_file(&self, ask: &Ask, config: &RegionConfig, mut life: Lifecycle) -> Result<Image, Refused> {
        let href = ask.required("/file/href")?;
        let wrong = |code: &str, message: &str| Refused::field(400, code, "file.href", message);
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
        let os = ask.required("/operating_system/name")?;
        let known = catalog::operating_system(&ask.base, os);
        let known = known.ok_or_else(|| {
            Refused::field(400, "bad_field", "operating_system.name", "There is no such operating system.")
        })?;
        if known["allow_user_image_creation"] != json!(true) {
            return Err(Refused::field(
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
            deprecation_at: ask.text("/deprecation_at").map(str::to_owned),
            obsolescence_at: ask.text("/obsolescence_at").map(str::to_owned),
        })
    }

    /// Creates an image of a volume. As IBM demands, it must be the boot volume of a stopped server.
    fn image_of_volume(&self, id: &str, life: Lifecycle) -> Result<Image, Refused> {
        let volume = self.volumes.get(id).ok_or_else(|| Refused::not_found("volume", id))?;
        let wrong = |message: &str| Refused::field(400, "invalid_state", "source_volume.id", message);
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

    pub(super) fn update_image(&mut self, ask: &Ask) -> Result<Answer, Refused> {
        let name = ask.text("/name").map(|_| ask.name()).transpose()?;
        if let Some(name) = &name {
            self.check_image_name(name, ask.id(0))?;
        }
        let image = self.images.get_mut(ask.id(0)).ok_or_else(|| Refused::not_found("image", ask.id(0)))?;
        if image.life.state == "deleting" {
            return Err(Refused::conflict("invalid_state", "The image is being deleted."));
        }
        if let Some(name) = name {
            image.life.name = name;
        }
        for (field, place) in
            [("deprecation_at", &mut image.deprecation_at), ("obsolescence_at", &mut image.obsolescence_at)]
        {
            if let Some(given) = ask.body.get(field) {
                *place = given.as_str().map(str::to_owned);
            }
        }
        image.life.version += 1;
        Ok(self.get_image(ask)?.about(ask.id(0)))
    }

    pub(super) fn age_image(&mut self, ask: &Ask, state: &str) -> Result<Answer, Refused> {
        let image = self.images.get_mut(ask.id(0)).ok_or_else(|| Refused::not_found("image", ask.id(0)))?;
        let allowed = match state {
            "deprecated" => image.life.state == "available",
            _ => matches!(image.life.state.as_str(), "available" | "deprecated"),
        };
        if !allowed {
            return Err(Refused::conflict(
                "invalid_state",
                &format!("An image that is {} can't be {state}.", image.life.state),
            ));
        }
        image.life.settle_in(state);
        Ok(Answer::empty(204, ask.id(0)))
    }

    pub(super) fn delete_image(&mut self, ask: &Ask, config: &RegionConfig) -> Result<Answer, Refused> {
        let image = self.images.get_mut(ask.id(0)).ok_or_else(|| Refused::not_found("image", ask.id(0)))?;
        if image.life.state == "deleting" {
            return Err(Refused::conflict("invalid_state", "The image is being deleted."));
        }
        // A queued import can still be cancelled, a running one can't.
        if image.life.reasons.iter().any(|(code, _)| code == "image_request_in_progress") {
            return Err(Refused::conflict("invalid_state", "The image is being imported."));
        }
        image.life.work = 0;
        image.life.enter("deleting", ask.now.after(config.delays.deletion), Turn::Gone);
        Ok(Answer::empty(202, ask.id(0)))
    }
}
