//! Volumes: files that are filled from snapshots or images.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::moment::Moment;
use super::ask::{Answer, Ask, Refused, href};
use super::catalog::{
    self, crn, generation_of, regional_id, resource_group, volume_profile_reference, zone_reference,
};
use super::config::RegionConfig;
use super::jobs::Job;
use super::life::{Lifecycle, Turn};
use super::lists::page;
use super::world::Region;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Volume {
    pub life: Lifecycle,
    pub capacity: u64,
    pub profile: String,
    pub zone: String,
    pub operating_system: Option<String>,
    pub source_snapshot: Option<String>,
    /// Time until which its data still comes from the snapshot.
    pub hydrated_at: Moment,
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
    fn show_volume(&self, base: &str, volume: &Volume, now: Moment) -> Value {
        let life = &volume.life;
        let name = &self.furniture.region;
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
            "created_at": life.created.shown(),
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

    pub(super) fn list_volumes(&self, ask: &Ask) -> Result<Answer, Refused> {
        let attached =
            |volume: &Volume| self.attachments.values().any(|attachment| attachment.volume == volume.life.id);
        let volumes = self.volumes.values().filter(|volume| {
            ask.query("zone.name").is_none_or(|zone| zone == volume.zone)
                && ask.query("tag").is_none_or(|tag| volume.tags.contains(&tag.to_ascii_lowercase()))
                && ask.query("encryption").is_none_or(|kind| kind == "provider_managed")
                && ask.query("operating_system.family").is_none_or(|family| {
                    let os = volume
                        .operating_system
                        .as_deref()
                        .and_then(|os| catalog::operating_system(&ask.base, os));
                    os.is_some_and(|os| os["family"] == family)
                })
                && ask.query("attachment_state").is_none_or(|state| (state == "attached") == attached(volume))
                && ask
                    .query("storage_generation")
                    .is_none_or(|generation| generation == volume.generation().to_string())
        });
        let shown =
            volumes.map(|volume| (&volume.life, self.show_volume(&ask.base, volume, ask.now))).collect();
        page(ask, "volumes", "volumes", shown)
    }

    pub(super) fn get_volume(&self, ask: &Ask) -> Result<Answer, Refused> {
        let volume = self.volumes.get(ask.id(0)).ok_or_else(|| Refused::not_found("volume", ask.id(0)))?;
        Ok(Answer::ok(self.show_volume(&ask.base, volume, ask.now)).etag(volume.life.etag()))
    }

    pub(super) fn create_volume(
        &mut self,
        ask: &Ask,
        config: &RegionConfig,
        jobs: &mut Vec<Job>,
    ) -> Result<Answer, Refused> {
        let name = ask.name()?;
        if self.volumes.values().any(|volume| volume.life.name == name) {
            return Err(Refused::name_taken(&name));
        }
        if self.volumes.len() >= config.volume_quota {
            return Err(Refused::new(400, "over_quota", "The quota of volumes in the region is used up."));
        }
        let zone = ask.required("/zone/name")?.to_owned();
        if !self.furniture.has_zone(&zone) {
            return Err(Refused::field(400, "bad_field", "zone.name", "There is no such zone."));
        }
        let id = regional_id(&self.furniture.region);
        let volume = self.new_volume(ask, config, &id, name, zone, "", jobs)?;
        let shown = self.show_volume(&ask.base, &volume, ask.now);
        let etag = volume.life.etag();
        self.volumes.insert(id.clone(), volume);
        Ok(Answer::created(shown, &id).etag(etag))
    }

    /// Creates a volume from the prototype at `at`, a JSON pointer into the body.
    #[expect(clippy::too_many_arguments, reason = "three of them say which volume")]
    pub(super) fn new_volume(
        &mut self,
        ask: &Ask,
        config: &RegionConfig,
        id: &str,
        name: String,
        zone: String,
        at: &str,
        jobs: &mut Vec<Job>,
    ) -> Result<Volume, Refused> {
        let profile = ask.required(&format!("{at}/profile/name"))?.to_owned();
        let Some(generation) = generation_of(&profile) else {
            return Err(Refused::field(400, "bad_field", "profile.name", "There is no such profile."));
        };
        let tags = ask.tags()?;
        let source = ask.text(&format!("{at}/source_snapshot/id")).or_else(|| {
            let crn = ask.text(&format!("{at}/source_snapshot/crn"))?;
            crn.rsplit(':').next()
        });
        let mut life = Lifecycle::new(id.to_owned(), name, "pending", ask.now)
            .turns("available", ask.now.after(config.delays.volume));
        life.work = 1;
        let capacity = ask.number(&format!("{at}/capacity"));
        let Some(source) = source else {
            let capacity = capacity
                .ok_or_else(|| Refused::field(400, "missing_field", "capacity", "The field is required."))?;
            if capacity < config.least_capacity {
                return Err(Refused::field(
                    400,
                    "volume_capacity_below_minimum",
                    "capacity",
                    "The capacity is too small.",
                ));
            }
            jobs.push(Job::fill_volume(&self.furniture.region, id));
            return Ok(Volume {
                life,
                capacity,
                profile,
                zone,
                operating_system: None,
                source_snapshot: None,
                hydrated_at: ask.now,
                tags,
            });
        };
        let snapshot = self.snapshots.get(source).ok_or_else(|| Refused::not_found("snapshot", source))?;
        if snapshot.life.state != "stable" {
            return Err(Refused::field(
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
            return Err(Refused::field(
                400,
                "volume_profile_storage_generation_mismatch",
                "profile.name",
                &message,
            ));
        }
        if capacity.is_some_and(|capacity| capacity < snapshot.capacity) {
            return Err(Refused::field(
                400,
                "bad_field",
                "capacity",
                "The capacity is less than the snapshot's minimum.",
            ));
        }
        // A volume that is restored from a clone is ready at once.
        let from_clone = snapshot.clones.get(&zone).is_some_and(|available| *available <= ask.now);
        let hydrated_at = if from_clone { ask.now } else { ask.now.after(config.delays.hydration) };
        jobs.push(Job::fill_volume(&self.furniture.region, id));
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

    pub(super) fn update_volume(&mut self, ask: &Ask) -> Result<Answer, Refused> {
        let tags = ask.body.get("user_tags").map(|_| ask.tags()).transpose()?;
        let name = ask.text("/name").map(|_| ask.name()).transpose()?;
        if let Some(name) = &name
            && self.volumes.values().any(|volume| volume.life.name == *name && volume.life.id != ask.id(0))
        {
            return Err(Refused::name_taken(name));
        }
        let volume =
            self.volumes.get_mut(ask.id(0)).ok_or_else(|| Refused::not_found("volume", ask.id(0)))?;
        ask.check_if_match(&volume.life.etag())?;
        if let Some(name) = name {
            volume.life.name = name;
        }
        if let Some(tags) = tags {
            volume.tags = tags;
        }
        volume.life.version += 1;
        let etag = volume.life.etag();
        let answer = self.get_volume(ask)?;
        Ok(answer.etag(etag).about(ask.id(0)))
    }

    pub(super) fn delete_volume(&mut self, ask: &Ask, config: &RegionConfig) -> Result<Answer, Refused> {
        let attached = self.attachments.values().any(|attachment| attachment.volume == ask.id(0));
        let volume =
            self.volumes.get_mut(ask.id(0)).ok_or_else(|| Refused::not_found("volume", ask.id(0)))?;
        if attached {
            return Err(Refused::conflict("volume_in_use", "The volume is attached to an instance."));
        }
        if volume.life.state == "pending_deletion" {
            return Err(Refused::conflict("volume_status_invalid", "The volume is being deleted."));
        }
        if volume.life.work > 0 {
            return Err(Refused::conflict("volume_status_invalid", "The volume is being made."));
        }
        volume.life.enter("pending_deletion", ask.now.after(config.delays.deletion), Turn::Gone);
        // The snapshot can be deleted as soon as the volume is being deleted.
        volume.hydrated_at = ask.now;
        Ok(Answer::empty(204, ask.id(0)))
    }
}
