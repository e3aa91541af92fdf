//! Snapshots: copies of the files of volumes, their clones, and their copies in other regions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::moment::Moment;
use super::ask::{Answer, Ask, Refused, href};
use super::catalog::{self, crn, regional_id, resource_group, zone_reference};
use super::config::RegionConfig;
use super::jobs::Job;
use super::life::{Lifecycle, Turn};
use super::lists::page;
use super::world::{Region, RegionState};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub life: Lifecycle,
    pub source_volume: String,
    pub capacity: u64,
    pub generation: u32,
    pub operating_system: Option<String>,
    pub tags: Vec<String>,
    pub captured: Option<Moment>,
    /// Zones with a clone, and the time from which it can be used.
    pub clones: BTreeMap<String, Moment>,
    /// Copies in other regions: region, and id there.
    pub copies: BTreeMap<String, String>,
    /// Region and id of the snapshot that this is a copy of.
    pub copy_of: Option<(String, String)>,
}

impl Snapshot {
    pub fn file(&self, folder: &Path) -> PathBuf {
        folder.join("snapshots").join(format!("{}.raw", self.life.id))
    }

    fn progress(&self) -> u64 {
        if matches!(self.life.state.as_str(), "pending" | "waiting") { 50 } else { 100 }
    }
}

fn show_clone(base: &str, region: &str, zone: &str, available: Moment, now: Moment) -> Value {
    json!({ "available": available <= now, "created_at": now.shown(), "zone": zone_reference(base, region, zone) })
}

impl Region {
    fn show_snapshot(&self, base: &str, snapshot: &Snapshot, now: Moment) -> Value {
        let (life, region) = (&snapshot.life, &self.furniture.region);
        let volume = self.volumes.get(&snapshot.source_volume);
        let zone = volume.map_or(region.as_str(), |volume| &volume.zone);
        let mut shown = json!({
            "id": life.id,
            "crn": crn(region, "snapshot", &life.id),
            "name": life.name,
            "href": href(base, &format!("snapshots/{}", life.id)),
            "created_at": life.created.shown(),
            "resource_type": "snapshot",
            "resource_group": resource_group(),
            "lifecycle_state": life.state,
            "lifecycle_reasons": life.reasons(),
            "bootable": snapshot.operating_system.is_some(),
            "deletable": true,
            "encryption": "provider_managed",
            "minimum_capacity": snapshot.capacity,
            "size": snapshot.capacity.min(1),
            "progress": snapshot.progress(),
            "service_tags": [],
            "software_attachments": [],
            "storage_generation": snapshot.generation,
            "user_tags": snapshot.tags,
            "clones": snapshot.clones.iter().map(|(zone, at)| show_clone(base, region, zone, *at, now)).collect::<Vec<_>>(),
            "copies": snapshot.copies.iter().map(|(region, id)| json!({
                "id": id,
                "crn": crn(region, "snapshot", id),
                "name": life.name,
                "href": href(base, &format!("snapshots/{id}")),
                "resource_type": "snapshot",
                "remote": { "region": { "name": region, "href": href(base, &format!("regions/{region}")) } },
            })).collect::<Vec<_>>(),
            "source_volume": {
                "id": snapshot.source_volume,
                "crn": crn(zone, "volume", &snapshot.source_volume),
                "name": volume.map_or("gone", |volume| &volume.life.name),
                "href": href(base, &format!("volumes/{}", snapshot.source_volume)),
                "resource_type": "volume",
            },
        });
        if let Some(captured) = snapshot.captured {
            shown["captured_at"] = json!(captured.shown());
        }
        if let Some(os) =
            snapshot.operating_system.as_deref().and_then(|os| catalog::operating_system(base, os))
        {
            shown["operating_system"] = os;
        }
        if let Some((region, id)) = &snapshot.copy_of {
            shown["source_snapshot"] = json!({
                "id": id,
                "crn": crn(region, "snapshot", id),
                "name": life.name,
                "href": href(base, &format!("snapshots/{id}")),
                "resource_type": "snapshot",
                "remote": { "region": { "name": region, "href": href(base, &format!("regions/{region}")) } },
            });
        }
        shown
    }

    fn snapshot(&self, id: &str) -> Result<&Snapshot, Refused> {
        self.snapshots.get(id).ok_or_else(|| Refused::not_found("snapshot", id))
    }

    pub(super) fn list_snapshots(&self, ask: &Ask) -> Result<Answer, Refused> {
        let snapshots = self.snapshots.values().filter(|snapshot| {
            ask.query("source_volume.id").is_none_or(|id| id == snapshot.source_volume)
                && ask.query("source_volume.crn").is_none_or(|crn| crn.ends_with(&snapshot.source_volume))
                && ask.query("tag").is_none_or(|tag| snapshot.tags.contains(&tag.to_ascii_lowercase()))
                && ask
                    .query("source_snapshot.id")
                    .is_none_or(|id| snapshot.copy_of.as_ref().is_some_and(|(_, source)| source == id))
                && ask
                    .query("copies[].remote.region.name")
                    .is_none_or(|region| snapshot.copies.contains_key(region))
                && ask.query("clones[].zone.name").is_none_or(|zone| snapshot.clones.contains_key(zone))
                && ask.query("backup_policy_plan.id").is_none()
        });
        let shown = snapshots
            .map(|snapshot| (&snapshot.life, self.show_snapshot(&ask.base, snapshot, ask.now)))
            .collect();
        page(ask, "snapshots", "snapshots", shown)
    }

    pub(super) fn get_snapshot(&self, ask: &Ask) -> Result<Answer, Refused> {
        let snapshot = self.snapshot(ask.id(0))?;
        Ok(Answer::ok(self.show_snapshot(&ask.base, snapshot, ask.now)).etag(snapshot.life.etag()))
    }

    pub(super) fn create_snapshot(
        &mut self,
        ask: &Ask,
        config: &RegionConfig,
        jobs: &mut Vec<Job>,
    ) -> Result<Answer, Refused> {
        let name = ask.name()?;
        if self.snapshots.values().any(|snapshot| snapshot.life.name == name) {
            return Err(Refused::name_taken(&name));
        }
        let source = ask.required("/source_volume/id")?;
        let volume = self.volumes.get(source).ok_or_else(|| Refused::not_found("volume", source))?;
        if volume.life.state != "available" {
            return Err(Refused::field(
                400,
                "invalid_state",
                "source_volume.id",
                "The volume is not available.",
            ));
        }
        if volume.hydrated_at > ask.now {
            return Err(Refused::conflict(
                "volume_health_state_degraded",
                "The volume is still being initialized from a snapshot.",
            ));
        }
        let server = self.attachments.values().find(|attachment| attachment.volume == source);
        let running = server
            .and_then(|attachment| self.instances.get(&attachment.instance))
            .is_some_and(|i| i.life.state == "running");
        if volume.generation() == 1 && !running {
            let message = "The source volume must be attached to a running instance.";
            return Err(Refused::field(
                400,
                "snapshots_source_volume_not_attached",
                "source_volume.id",
                message,
            ));
        }
        let busy = self
            .snapshots
            .values()
            .any(|other| other.source_volume == source && other.life.state == "pending");
        if busy {
            return Err(Refused::conflict(
                "snapshots_source_volume_busy",
                "Another snapshot of the volume is being taken.",
            ));
        }
        let mut clones = BTreeMap::new();
        for clone in ask.body.get("clones").and_then(Value::as_array).into_iter().flatten() {
            let zone = clone.pointer("/zone/name").and_then(Value::as_str).unwrap_or_default();
            if !self.furniture.has_zone(zone) {
                return Err(Refused::field(400, "bad_field", "clones[].zone.name", "There is no such zone."));
            }
            clones.insert(zone.to_owned(), ask.now.after(config.delays.snapshot * 2));
        }
        let id = regional_id(&self.furniture.region);
        let mut life = Lifecycle::new(id.clone(), name, "pending", ask.now)
            .turns("stable", ask.now.after(config.delays.snapshot));
        life.work = 1;
        let snapshot = Snapshot {
            life,
            source_volume: source.to_owned(),
            capacity: volume.capacity,
            generation: volume.generation(),
            operating_system: volume.operating_system.clone(),
            tags: ask.tags()?,
            captured: None,
            clones,
            copies: BTreeMap::new(),
            copy_of: None,
        };
        jobs.push(Job::take_snapshot(&self.furniture.region, &id));
        let answer = Answer::created(self.show_snapshot(&ask.base, &snapshot, ask.now), &id)
            .etag(snapshot.life.etag());
        self.snapshots.insert(id, snapshot);
        Ok(answer)
    }

    pub(super) fn update_snapshot(&mut self, ask: &Ask) -> Result<Answer, Refused> {
        let tags = ask.body.get("user_tags").map(|_| ask.tags()).transpose()?;
        let name = ask.text("/name").map(|_| ask.name()).transpose()?;
        if let Some(name) = &name
            && self
                .snapshots
                .values()
                .any(|snapshot| snapshot.life.name == *name && snapshot.life.id != ask.id(0))
        {
            return Err(Refused::name_taken(name));
        }
        let snapshot =
            self.snapshots.get_mut(ask.id(0)).ok_or_else(|| Refused::not_found("snapshot", ask.id(0)))?;
        ask.check_if_match(&snapshot.life.etag())?;
        if let Some(name) = name {
            snapshot.life.name = name;
        }
        if let Some(tags) = tags {
            snapshot.tags = tags;
        }
        snapshot.life.version += 1;
        Ok(self.get_snapshot(ask)?.about(ask.id(0)))
    }

    fn end_snapshot(&mut self, id: &str, ask: &Ask, config: &RegionConfig) -> Result<(), Refused> {
        let snapshot = self.snapshots.get_mut(id).ok_or_else(|| Refused::not_found("snapshot", id))?;
        if snapshot.life.state == "deleting" {
            return Err(Refused::conflict("invalid_state", "The snapshot is being deleted."));
        }
        if snapshot.life.work > 0 {
            return Err(Refused::conflict("invalid_state", "The snapshot is being taken."));
        }
        snapshot.life.enter("deleting", ask.now.after(config.delays.deletion), Turn::Gone);
        Ok(())
    }

    pub(super) fn delete_snapshot(&mut self, ask: &Ask, config: &RegionConfig) -> Result<Answer, Refused> {
        self.end_snapshot(ask.id(0), ask, config)?;
        Ok(Answer::empty(202, ask.id(0)))
    }

    /// Deletes all snapshots of a volume, those of other users included, as IBM's API does. snapferry must
    /// never request this.
    pub(super) fn delete_snapshots(&mut self, ask: &Ask, config: &RegionConfig) -> Result<Answer, Refused> {
        let Some(volume) = ask.query("source_volume.id") else {
            return Err(Refused::parameter(
                400,
                "missing_field",
                "source_volume.id",
                "The parameter is required.",
            ));
        };
        let all: Vec<String> = self
            .snapshots
            .values()
            .filter(|s| s.source_volume == volume)
            .map(|s| s.life.id.clone())
            .collect();
        for id in &all {
            self.end_snapshot(id, ask, config)?;
        }
        Ok(Answer::empty(204, volume))
    }

    pub(super) fn list_clones(&self, ask: &Ask) -> Result<Answer, Refused> {
        let snapshot = self.snapshot(ask.id(0))?;
        let region = &self.furniture.region;
        let clones: Vec<Value> = snapshot
            .clones
            .iter()
            .map(|(zone, at)| show_clone(&ask.base, region, zone, *at, ask.now))
            .collect();
        Ok(Answer::ok(json!({ "clones": clones })))
    }

    pub(super) fn get_clone(&self, ask: &Ask) -> Result<Answer, Refused> {
        let available = self.snapshot(ask.id(0))?.clones.get(ask.id(1));
        let available = available.ok_or_else(|| Refused::not_found("snapshot_clone", ask.id(1)))?;
        Ok(Answer::ok(show_clone(&ask.base, &self.furniture.region, ask.id(1), *available, ask.now)))
    }

    pub(super) fn create_clone(&mut self, ask: &Ask, config: &RegionConfig) -> Result<Answer, Refused> {
        let zone = ask.id(1).to_owned();
        if !self.furniture.has_zone(&zone) {
            return Err(Refused::not_found("zone", &zone));
        }
        let region = self.furniture.region.clone();
        let snapshot =
            self.snapshots.get_mut(ask.id(0)).ok_or_else(|| Refused::not_found("snapshot", ask.id(0)))?;
        let available = *snapshot.clones.entry(zone.clone()).or_insert(ask.now.after(config.delays.snapshot));
        snapshot.life.version += 1;
        Ok(Answer::ok(show_clone(&ask.base, &region, &zone, available, ask.now)).about(ask.id(0)))
    }

    pub(super) fn delete_clone(&mut self, ask: &Ask) -> Result<Answer, Refused> {
        let snapshot =
            self.snapshots.get_mut(ask.id(0)).ok_or_else(|| Refused::not_found("snapshot", ask.id(0)))?;
        match snapshot.clones.remove(ask.id(1)) {
            Some(_) => Ok(Answer::empty(202, ask.id(0))),
            None => Err(Refused::not_found("snapshot_clone", ask.id(1))),
        }
    }
}

/// Creates a copy of another region's snapshot. The request goes to the region of the copy.
pub(super) fn copy(
    world: &mut RegionState,
    config: &RegionConfig,
    ask: &Ask,
    jobs: &mut Vec<Job>,
) -> Result<Answer, Refused> {
    let name = ask.name()?;
    let tags = ask.tags()?;
    let source_crn = ask.required("/source_snapshot/crn")?.to_owned();
    let wrong = |message: &str| Refused::field(400, "bad_field", "source_snapshot.crn", message);
    let mut fields = source_crn.split(':');
    let (from, id) =
        (fields.nth(5).unwrap_or_default().to_owned(), fields.next_back().unwrap_or_default().to_owned());
    if from == ask.region {
        return Err(wrong("A snapshot can't be copied into its own region."));
    }
    let target_id = regional_id(&ask.region);
    {
        let target = world
            .region(&ask.region)
            .ok_or_else(|| Refused::new(404, "invalid_route", "There is no such region here."))?;
        if target.snapshots.values().any(|snapshot| snapshot.life.name == name) {
            return Err(Refused::name_taken(&name));
        }
    }
    let region = world.region(&from).ok_or_else(|| wrong("There is no such region here."))?;
    let source = region.snapshots.get_mut(&id).ok_or_else(|| Refused::not_found("snapshot", &id))?;
    if source.life.state != "stable" {
        return Err(Refused::conflict("invalid_state", "The source snapshot is not stable."));
    }
    if source.copies.contains_key(&ask.region) {
        return Err(Refused::conflict(
            "snapshot_copy_exists",
            "The snapshot has a copy in the region already.",
        ));
    }
    if ask.body.get("encryption_key").is_some() {
        return Err(Refused::field(
            400,
            "bad_field",
            "encryption_key",
            "The source snapshot is provider managed.",
        ));
    }
    source.copies.insert(ask.region.clone(), target_id.clone());
    source.life.version += 1;
    let mut life = Lifecycle::new(target_id.clone(), name, "pending", ask.now)
        .turns("stable", ask.now.after(config.delays.snapshot));
    life.work = 1;
    let snapshot = Snapshot {
        life,
        source_volume: source.source_volume.clone(),
        capacity: source.capacity,
        generation: source.generation,
        operating_system: source.operating_system.clone(),
        tags,
        captured: source.captured,
        clones: BTreeMap::new(),
        copies: BTreeMap::new(),
        copy_of: Some((from, id)),
    };
    let target = world
        .region(&ask.region)
        .ok_or_else(|| Refused::new(404, "invalid_route", "There is no such region here."))?;
    let answer = Answer::created(target.show_snapshot(&ask.base, &snapshot, ask.now), &target_id)
        .etag(snapshot.life.etag());
    target.snapshots.insert(target_id.clone(), snapshot);
    jobs.push(Job::take_snapshot(&ask.region, &target_id));
    Ok(answer)
}
