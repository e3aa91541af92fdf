//! Volumes: files that are filled from snapshots or images.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::timestamp::Timestamp;
use super::catalog::{
    self, crn, generation_of, regional_id, resource_group, volume_profile_reference, zone_reference,
};
use super::config::RegionConfig;
use super::jobs::Job;
use super::lifecycle::{Lifecycle, Turn};
use super::lists::page;
use super::request::{ApiError, ApiRequest, ApiResponse, href};
use super::state::Region;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Volume {
    pub life: Lifecycle,
    pub capacity: u64,
    pub profile: String,
    pub zone: String,
    pub operating_system: Option<String>,
    pub source_snapshot: Option<String>,
    /// Time until which its data still comes from the snapshot.
    pub hydrated_at: Timestamp,
    pub tags: Vec<String>,
}

impl Volume {
    pub fn file(&self, folder: &Path) -> PathBuf {
        folder.join("volumes").join(format!("{}.raw", self.life.id))
    }

    pub fn generation(&self) -> u32 {
        generation_of(&self.profile).unwrap_or(1)
    }
}

impl Region {
    fn show_volume(&self, base: &str, volume: &Volume, now: Timestamp) -> Value {
        let life = &volume.life;
        let name = &self.catalog.region;
        let attachments: Vec<Value> = self
            .attachments
            .values()
            .filter(|attachment| attachment.volume == life.id)
            .filter_map(|attachment| {
                let server = self.instances.get(&attachment.instance)?;
                let mut shown = json!({
                    "id": attachment.life.id,
                    "name": attachment.life.name,
                    "type": attachment.kind(),
                    "delete_volume_on_instance_delete": attachment.delete_volume,
                    "href": href(base, &format!("instances/{}/volume_attachments/{}", server.life.id, attachment.life.id)),
                    "instance": server.reference(base),
                });
                if let Some(device) = attachment.device() {
                    shown["device"] = device;
                }
                Some(shown)
            })
            .collect();
        let hydrating = volume.hydrated_at > now;
        let available = matches!(life.state.as_str(), "available" | "updating");
        let mut shown = json!({
            "id": life.id,
            "crn": crn(&volume.zone, "volume", &life.id),
            "name": life.name,
            "href": href(base, &format!("volumes/{}", life.id)),
            "created_at": life.created.to_rfc3339(),
            "resource_type": "volume",
            "resource_group": resource_group(),
            "status": life.state,
            "status_reasons": life.reasons(),
            "health_state": if !available { "inapplicable" } else if hydrating { "degraded" } else { "ok" },
            "health_reasons": if available && hydrating {
                json!([{ "code": "initializing_from_snapshot", "message": "Performance will be degraded while this volume is being initialized from its snapshot" }])
            } else {
                json!([])
            },
            "active": !attachments.is_empty(),
            "attachment_state": if attachments.is_empty() { "unattached" } else { "attached" },
            "busy": false,
            "bandwidth": 393,
            "iops": 3000,
            "capacity": volume.capacity,
            "adjustable_capacity_states": ["attached"],
            "adjustable_iops_states": ["attached"],
            "encryption": "provider_managed",
            "profile": volume_profile_reference(base, &volume.profile),
            "software_attachments": [],
            "storage_generation": volume.generation(),
            "user_tags": volume.tags,
            "volume_attachments": attachments,
            "zone": zone_reference(base, name, &volume.zone),
        });
        if let Some(os) =
            volume.operating_system.as_deref().and_then(|os| catalog::operating_system(base, os))
        {
            shown["operating_system"] = os;
        }
        if let Some(id) = &volume.source_snapshot {
            let source = self.snapshots.get(id).map_or("gone", |snapshot| &snapshot.life.name);
            shown["source_snapshot"] = json!({
                "id": id,
                "name": source,
                "crn": crn(name, "snapshot", id),
                "href": href(base, &format!("snapshots/{id}")),
                "resource_type": "snapshot",
            });
        }
        shown
    }

    pub(super) fn list_volumes(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let attached =
            |volume: &Volume| self.attachments.values().any(|attachment| attachment.volume == volume.life.id);
        let volumes = self.volumes.values().filter(|volume| {
            request.query("zone.name").is_none_or(|zone| zone == volume.zone)
                && request.query("tag").is_none_or(|tag| volume.tags.contains(&tag.to_ascii_lowercase()))
                && request.query("encryption").is_none_or(|kind| kind == "provider_managed")
                && request.query("operating_system.family").is_none_or(|family| {
                    let os = volume
                        .operating_system
                        .as_deref()
                        .and_then(|os| catalog::operating_system(&request.base, os));
                    os.is_some_and(|os| os["family"] == family)
                })
                && request
                    .query("attachment_state")
                    .is_none_or(|state| (state == "attached") == attached(volume))
                && request
                    .query("storage_generation")
                    .is_none_or(|generation| generation == volume.generation().to_string())
        });
        let shown = volumes
            .map(|volume| (&volume.life, self.show_volume(&request.base, volume, request.now)))
            .collect();
        page(request, "volumes", "volumes", shown)
    }

    pub(super) fn get_volume(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let volume =
            self.volumes.get(request.id(0)).ok_or_else(|| ApiError::not_found("volume", request.id(0)))?;
        Ok(ApiResponse::ok(self.show_volume(&request.base, volume, request.now)).etag(volume.life.etag()))
    }

    pub(super) fn create_volume(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
        jobs: &mut Vec<Job>,
    ) -> Result<ApiResponse, ApiError> {
        let name = request.name()?;
        if self.volumes.values().any(|volume| volume.life.name == name) {
            return Err(ApiError::name_taken(&name));
        }
        if self.volumes.len() >= config.volume_quota {
            return Err(ApiError::new(400, "over_quota", "The quota of volumes in the region is used up."));
        }
        let zone = request.required("/zone/name")?.to_owned();
        if !self.catalog.has_zone(&zone) {
            return Err(ApiError::field(400, "bad_field", "zone.name", "There is no such zone."));
        }
        let id = regional_id(&self.catalog.region);
        let volume = self.new_volume(request, config, &id, name, zone, "", jobs)?;
        let shown = self.show_volume(&request.base, &volume, request.now);
        let etag = volume.life.etag();
        self.volumes.insert(id.clone(), volume);
        Ok(ApiResponse::created(shown, &id).etag(etag))
    }

    /// Creates a volume from the prototype at `at`, a JSON pointer into the body.
    #[expect(clippy::too_many_arguments, reason = "three of them say which volume")]
    pub(super) fn new_volume(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
        id: &str,
        name: String,
        zone: String,
        at: &str,
        jobs: &mut Vec<Job>,
    ) -> Result<Volume, ApiError> {
        let profile = request.required(&format!("{at}/profile/name"))?.to_owned();
        let Some(generation) = generation_of(&profile) else {
            return Err(ApiError::field(400, "bad_field", "profile.name", "There is no such profile."));
        };
        let tags = request.tags()?;
        let source = request.text(&format!("{at}/source_snapshot/id")).or_else(|| {
            let crn = request.text(&format!("{at}/source_snapshot/crn"))?;
            crn.rsplit(':').next()
        });
        let mut life = Lifecycle::new(id.to_owned(), name, "pending", request.now)
            .then("available", request.now.after(config.delays.volume));
        life.work = 1;
        let capacity = request.number(&format!("{at}/capacity"));
        let Some(source) = source else {
            let capacity = capacity
                .ok_or_else(|| ApiError::field(400, "missing_field", "capacity", "The field is required."))?;
            if capacity < config.least_capacity {
                return Err(ApiError::field(
                    400,
                    "volume_capacity_below_minimum",
                    "capacity",
                    "The capacity is too small.",
                ));
            }
            jobs.push(Job::fill_volume(&self.catalog.region, id));
            return Ok(Volume {
                life,
                capacity,
                profile,
                zone,
                operating_system: None,
                source_snapshot: None,
                hydrated_at: request.now,
                tags,
            });
        };
        let snapshot = self.snapshots.get(source).ok_or_else(|| ApiError::not_found("snapshot", source))?;
        if snapshot.life.state != "stable" {
            return Err(ApiError::field(
                400,
                "invalid_state",
                "source_snapshot.id",
                "The snapshot is not stable.",
            ));
        }
        // A profile can restore only snapshots of its own storage generation.
        if snapshot.generation != generation {
            let message = format!(
                "The profile {profile} can't be used with a snapshot of storage generation {}.",
                snapshot.generation
            );
            return Err(ApiError::field(
                400,
                "volume_profile_storage_generation_mismatch",
                "profile.name",
                &message,
            ));
        }
        if capacity.is_some_and(|capacity| capacity < snapshot.capacity) {
            return Err(ApiError::field(
                400,
                "bad_field",
                "capacity",
                "The capacity is less than the snapshot's minimum.",
            ));
        }
        // A volume that is restored from a clone is ready at once.
        let from_clone = snapshot.clones.get(&zone).is_some_and(|available| *available <= request.now);
        let hydrated_at = if from_clone { request.now } else { request.now.after(config.delays.hydration) };
        jobs.push(Job::fill_volume(&self.catalog.region, id));
        Ok(Volume {
            life,
            capacity: capacity.unwrap_or(snapshot.capacity),
            profile,
            zone,
            operating_system: snapshot.operating_system.clone(),
            source_snapshot: Some(source.to_owned()),
            hydrated_at,
            tags,
        })
    }

    pub(super) fn update_volume(&mut self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let tags = request.body.get("user_tags").map(|_| request.tags()).transpose()?;
        let name = request.text("/name").map(|_| request.name()).transpose()?;
        if let Some(name) = &name
            && self
                .volumes
                .values()
                .any(|volume| volume.life.name == *name && volume.life.id != request.id(0))
        {
            return Err(ApiError::name_taken(name));
        }
        let volume = self
            .volumes
            .get_mut(request.id(0))
            .ok_or_else(|| ApiError::not_found("volume", request.id(0)))?;
        request.check_if_match(&volume.life.etag())?;
        if let Some(name) = name {
            volume.life.name = name;
        }
        if let Some(tags) = tags {
            volume.tags = tags;
        }
        volume.life.version += 1;
        let etag = volume.life.etag();
        let response = self.get_volume(request)?;
        Ok(response.etag(etag).resource_id(request.id(0)))
    }

    pub(super) fn delete_volume(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
    ) -> Result<ApiResponse, ApiError> {
        let attached = self.attachments.values().any(|attachment| attachment.volume == request.id(0));
        let volume = self
            .volumes
            .get_mut(request.id(0))
            .ok_or_else(|| ApiError::not_found("volume", request.id(0)))?;
        if attached {
            return Err(ApiError::conflict("volume_in_use", "The volume is attached to an instance."));
        }
        if volume.life.state == "pending_deletion" {
            return Err(ApiError::conflict("volume_status_invalid", "The volume is being deleted."));
        }
        if volume.life.work > 0 {
            return Err(ApiError::conflict("volume_status_invalid", "The volume is being made."));
        }
        volume.life.enter("pending_deletion", request.now.after(config.delays.deletion), Turn::Gone);
        // The snapshot can be deleted as soon as the volume is being deleted.
        volume.hydrated_at = request.now;
        Ok(ApiResponse::empty(204, request.id(0)))
    }
}
