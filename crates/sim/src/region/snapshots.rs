//! Snapshots: copies of the files of volumes, their clones, and their copies in other regions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::timestamp::Timestamp;
use super::catalog::{self, crn, regional_id, resource_group, zone_reference};
use super::config::RegionConfig;
use super::jobs::Job;
use super::lifecycle::{Lifecycle, Turn};
use super::lists::page;
use super::request::{ApiError, ApiRequest, ApiResponse, href};
use super::state::{CloudState, Region};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub life: Lifecycle,
    pub source_volume: String,
    pub capacity: u64,
    pub generation: u32,
    pub operating_system: Option<String>,
    pub tags: Vec<String>,
    pub captured: Option<Timestamp>,
    /// Zones with a clone, and the time from which it can be used.
    pub clones: BTreeMap<String, Timestamp>,
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

fn show_clone(base: &str, region: &str, zone: &str, available: Timestamp, now: Timestamp) -> Value {
    json!({ "available": available <= now, "created_at": now.to_rfc3339(), "zone": zone_reference(base, region, zone) })
}

impl Region {
    fn show_snapshot(&self, base: &str, snapshot: &Snapshot, now: Timestamp) -> Value {
        let (life, region) = (&snapshot.life, &self.catalog.region);
        let volume = self.volumes.get(&snapshot.source_volume);
        let zone = volume.map_or(region.as_str(), |volume| &volume.zone);
        let mut shown = json!({
            "id": life.id,
            "crn": crn(region, "snapshot", &life.id),
            "name": life.name,
            "href": href(base, &format!("snapshots/{}", life.id)),
            "created_at": life.created.to_rfc3339(),
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
            shown["captured_at"] = json!(captured.to_rfc3339());
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

    fn snapshot(&self, id: &str) -> Result<&Snapshot, ApiError> {
        self.snapshots.get(id).ok_or_else(|| ApiError::not_found("snapshot", id))
    }

    pub(super) fn list_snapshots(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let snapshots = self.snapshots.values().filter(|snapshot| {
            request.query("source_volume.id").is_none_or(|id| id == snapshot.source_volume)
                && request.query("source_volume.crn").is_none_or(|crn| crn.ends_with(&snapshot.source_volume))
                && request.query("tag").is_none_or(|tag| snapshot.tags.contains(&tag.to_ascii_lowercase()))
                && request
                    .query("source_snapshot.id")
                    .is_none_or(|id| snapshot.copy_of.as_ref().is_some_and(|(_, source)| source == id))
                && request
                    .query("copies[].remote.region.name")
                    .is_none_or(|region| snapshot.copies.contains_key(region))
                && request.query("clones[].zone.name").is_none_or(|zone| snapshot.clones.contains_key(zone))
                && request.query("backup_policy_plan.id").is_none()
        });
        let shown = snapshots
            .map(|snapshot| (&snapshot.life, self.show_snapshot(&request.base, snapshot, request.now)))
            .collect();
        page(request, "snapshots", "snapshots", shown)
    }

    pub(super) fn get_snapshot(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let snapshot = self.snapshot(request.id(0))?;
        Ok(ApiResponse::ok(self.show_snapshot(&request.base, snapshot, request.now))
            .etag(snapshot.life.etag()))
    }

    pub(super) fn create_snapshot(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
        jobs: &mut Vec<Job>,
    ) -> Result<ApiResponse, ApiError> {
        let name = request.name()?;
        if self.snapshots.values().any(|snapshot| snapshot.life.name == name) {
            return Err(ApiError::name_taken(&name));
        }
        let source = request.required("/source_volume/id")?;
        let volume = self.volumes.get(source).ok_or_else(|| ApiError::not_found("volume", source))?;
        if volume.life.state != "available" {
            return Err(ApiError::field(
                400,
                "invalid_state",
                "source_volume.id",
                "The volume is not available.",
            ));
        }
        if volume.hydrated_at > request.now {
            return Err(ApiError::conflict(
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
            return Err(ApiError::field(
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
            return Err(ApiError::conflict(
                "snapshots_source_volume_busy",
                "Another snapshot of the volume is being taken.",
            ));
        }
        let mut clones = BTreeMap::new();
        for clone in request.body.get("clones").and_then(Value::as_array).into_iter().flatten() {
            let zone = clone.pointer("/zone/name").and_then(Value::as_str).unwrap_or_default();
            if !self.catalog.has_zone(zone) {
                return Err(ApiError::field(
                    400,
                    "bad_field",
                    "clones[].zone.name",
                    "There is no such zone.",
                ));
            }
            clones.insert(zone.to_owned(), request.now.after(config.delays.snapshot * 2));
        }
        let id = regional_id(&self.catalog.region);
        let mut life = Lifecycle::new(id.clone(), name, "pending", request.now)
            .then("stable", request.now.after(config.delays.snapshot));
        life.work = 1;
        let snapshot = Snapshot {
            life,
            source_volume: source.to_owned(),
            capacity: volume.capacity,
            generation: volume.generation(),
            operating_system: volume.operating_system.clone(),
            tags: request.tags()?,
            captured: None,
            clones,
            copies: BTreeMap::new(),
            copy_of: None,
        };
        jobs.push(Job::take_snapshot(&self.catalog.region, &id));
        let response = ApiResponse::created(self.show_snapshot(&request.base, &snapshot, request.now), &id)
            .etag(snapshot.life.etag());
        self.snapshots.insert(id, snapshot);
        Ok(response)
    }

    pub(super) fn update_snapshot(&mut self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let tags = request.body.get("user_tags").map(|_| request.tags()).transpose()?;
        let name = request.text("/name").map(|_| request.name()).transpose()?;
        if let Some(name) = &name
            && self
                .snapshots
                .values()
                .any(|snapshot| snapshot.life.name == *name && snapshot.life.id != request.id(0))
        {
            return Err(ApiError::name_taken(name));
        }
        let snapshot = self
            .snapshots
            .get_mut(request.id(0))
            .ok_or_else(|| ApiError::not_found("snapshot", request.id(0)))?;
        request.check_if_match(&snapshot.life.etag())?;
        if let Some(name) = name {
            snapshot.life.name = name;
        }
        if let Some(tags) = tags {
            snapshot.tags = tags;
        }
        snapshot.life.version += 1;
        Ok(self.get_snapshot(request)?.resource_id(request.id(0)))
    }

    fn start_deletion(
        &mut self,
        id: &str,
        request: &ApiRequest,
        config: &RegionConfig,
    ) -> Result<(), ApiError> {
        let snapshot = self.snapshots.get_mut(id).ok_or_else(|| ApiError::not_found("snapshot", id))?;
        if snapshot.life.state == "deleting" {
            return Err(ApiError::conflict("invalid_state", "The snapshot is being deleted."));
        }
        if snapshot.life.work > 0 {
            return Err(ApiError::conflict("invalid_state", "The snapshot is being taken."));
        }
        snapshot.life.enter("deleting", request.now.after(config.delays.deletion), Turn::Gone);
        Ok(())
    }

    pub(super) fn delete_snapshot(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
    ) -> Result<ApiResponse, ApiError> {
        self.start_deletion(request.id(0), request, config)?;
        Ok(ApiResponse::empty(202, request.id(0)))
    }

    /// Deletes all snapshots of a volume, those of other users included, as IBM's API does. snapferry must
    /// never request this.
    pub(super) fn delete_snapshots(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
    ) -> Result<ApiResponse, ApiError> {
        let Some(volume) = request.query("source_volume.id") else {
            return Err(ApiError::parameter(
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
            self.start_deletion(id, request, config)?;
        }
        Ok(ApiResponse::empty(204, volume))
    }

    pub(super) fn list_clones(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let snapshot = self.snapshot(request.id(0))?;
        let region = &self.catalog.region;
        let clones: Vec<Value> = snapshot
            .clones
            .iter()
            .map(|(zone, at)| show_clone(&request.base, region, zone, *at, request.now))
            .collect();
        Ok(ApiResponse::ok(json!({ "clones": clones })))
    }

    pub(super) fn get_clone(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let available = self.snapshot(request.id(0))?.clones.get(request.id(1));
        let available = available.ok_or_else(|| ApiError::not_found("snapshot_clone", request.id(1)))?;
        Ok(ApiResponse::ok(show_clone(
            &request.base,
            &self.catalog.region,
            request.id(1),
            *available,
            request.now,
        )))
    }

    pub(super) fn create_clone(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
    ) -> Result<ApiResponse, ApiError> {
        let zone = request.id(1).to_owned();
        if !self.catalog.has_zone(&zone) {
            return Err(ApiError::not_found("zone", &zone));
        }
        let region = self.catalog.region.clone();
        let snapshot = self
            .snapshots
            .get_mut(request.id(0))
            .ok_or_else(|| ApiError::not_found("snapshot", request.id(0)))?;
        let available =
            *snapshot.clones.entry(zone.clone()).or_insert(request.now.after(config.delays.snapshot));
        snapshot.life.version += 1;
        Ok(ApiResponse::ok(show_clone(&request.base, &region, &zone, available, request.now))
            .resource_id(request.id(0)))
    }

    pub(super) fn delete_clone(&mut self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let snapshot = self
            .snapshots
            .get_mut(request.id(0))
            .ok_or_else(|| ApiError::not_found("snapshot", request.id(0)))?;
        match snapshot.clones.remove(request.id(1)) {
            Some(_) => Ok(ApiResponse::empty(202, request.id(0))),
            None => Err(ApiError::not_found("snapshot_clone", request.id(1))),
        }
    }
}

/// Creates a copy of another region's snapshot. The request goes to the region of the copy.
pub(super) fn copy(
    cloud: &mut CloudState,
    config: &RegionConfig,
    request: &ApiRequest,
    jobs: &mut Vec<Job>,
) -> Result<ApiResponse, ApiError> {
    let name = request.name()?;
    let tags = request.tags()?;
    let source_crn = request.required("/source_snapshot/crn")?.to_owned();
    let wrong = |message: &str| ApiError::field(400, "bad_field", "source_snapshot.crn", message);
    let mut fields = source_crn.split(':');
    let (from, id) =
        (fields.nth(5).unwrap_or_default().to_owned(), fields.next_back().unwrap_or_default().to_owned());
    if from == request.region {
        return Err(wrong("A snapshot can't be copied into its own region."));
    }
    let target_id = regional_id(&request.region);
    {
        let target = cloud
            .region(&request.region)
            .ok_or_else(|| ApiError::new(404, "invalid_route", "There is no such region here."))?;
        if target.snapshots.values().any(|snapshot| snapshot.life.name == name) {
            return Err(ApiError::name_taken(&name));
        }
    }
    let region = cloud.region(&from).ok_or_else(|| wrong("There is no such region here."))?;
    let source = region.snapshots.get_mut(&id).ok_or_else(|| ApiError::not_found("snapshot", &id))?;
    if source.life.state != "stable" {
        return Err(ApiError::conflict("invalid_state", "The source snapshot is not stable."));
    }
    if source.copies.contains_key(&request.region) {
        return Err(ApiError::conflict(
            "snapshot_copy_exists",
            "The snapshot has a copy in the region already.",
        ));
    }
    if request.body.get("encryption_key").is_some() {
        return Err(ApiError::field(
            400,
            "bad_field",
            "encryption_key",
            "The source snapshot is provider managed.",
        ));
    }
    source.copies.insert(request.region.clone(), target_id.clone());
    source.life.version += 1;
    let mut life = Lifecycle::new(target_id.clone(), name, "pending", request.now)
        .then("stable", request.now.after(config.delays.snapshot));
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
    let target = cloud
        .region(&request.region)
        .ok_or_else(|| ApiError::new(404, "invalid_route", "There is no such region here."))?;
    let response =
        ApiResponse::created(target.show_snapshot(&request.base, &snapshot, request.now), &target_id)
            .etag(snapshot.life.etag());
    target.snapshots.insert(target_id.clone(), snapshot);
    jobs.push(Job::take_snapshot(&request.region, &target_id));
    Ok(response)
}
