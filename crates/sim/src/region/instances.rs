//! Servers, which the API calls instances.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use snapferry_base::units::GIB;

use super::super::timestamp::Timestamp;
use super::attachments::Attachment;
use super::catalog::{self, crn, regional_id, resource_group, zonal_id, zone_reference};
use super::config::{RegionConfig, ServerSeed};
use super::disks;
use super::front::Front;
use super::jobs::Job;
use super::lifecycle::{Lifecycle, Turn};
use super::lists::page;
use super::request::{ApiError, ApiRequest, ApiResponse, href};
use super::state::Region;
use super::volumes::Volume;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Instance {
    pub life: Lifecycle,
    pub zone: String,
    pub profile: String,
    pub image: Option<String>,
}

impl Instance {
    pub fn reference(&self, base: &str) -> Value {
        json!({
            "id": self.life.id,
            "name": self.life.name,
            "crn": crn(&self.zone, "instance", &self.life.id),
            "href": href(base, &format!("instances/{}", self.life.id)),
            "resource_type": "instance",
        })
    }
}

impl Region {
    /// Adds a running server without a volume, and returns its id. [`Self::add_boot_volume`] gives it one;
    /// the servers of the configuration have none.
    pub(super) fn add_server(&mut self, region: &str, name: &str, zone: u32, now: Timestamp) -> String {
        let zone = format!("{region}-{zone}");
        let id = zonal_id(region, &zone);
        let life = Lifecycle::new(id.clone(), name.to_owned(), "running", now);
        self.instances
            .insert(id.clone(), Instance { life, zone, profile: "mx2-2x16".to_owned(), image: None });
        id
    }

    /// Returns the file of a server's boot volume in the cloud's `folder`.
    pub(super) fn boot_disk(&self, server: &str, folder: &Path) -> Option<PathBuf> {
        let server = self.instances.values().find(|instance| instance.life.name == server)?;
        let mut boots = self.attachments.values().filter(|attachment| attachment.boot);
        let boot = boots.find(|attachment| attachment.instance == server.life.id)?;
        self.volumes.get(&boot.volume).map(|volume| volume.file(folder))
    }

    fn add_boot_volume(&mut self, server: &str, volume: Volume, now: Timestamp) {
        let region = self.catalog.region.clone();
        let Some(zone) = self.instances.get(server).map(|server| server.zone.clone()) else { return };
        let id = zonal_id(&region, &zone);
        let attachment = Attachment {
            life: Lifecycle::new(id.clone(), "boot".to_owned(), "attached", now),
            instance: server.to_owned(),
            volume: volume.life.id.clone(),
            boot: true,
            delete_volume: true,
            device: format!("{}-{}", zonal_id(&region, &zone), "b00t0"),
            linked_from: now,
        };
        self.attachments.insert(id, attachment);
        self.volumes.insert(volume.life.id.clone(), volume);
    }

    pub(super) fn show_instance(&self, base: &str, instance: &Instance) -> Value {
        let (life, region) = (&instance.life, &self.catalog.region);
        let own = || self.attachments.values().filter(|attachment| attachment.instance == life.id);
        let attachment = |attachment: &Attachment| {
            let mut shown = json!({
                "id": attachment.life.id,
                "name": attachment.life.name,
                "href": href(base, &format!("instances/{}/volume_attachments/{}", life.id, attachment.life.id)),
            });
            if let Some(device) = attachment.device() {
                shown["device"] = device;
            }
            if let Some(volume) = self.volume_reference(base, &attachment.volume) {
                shown["volume"] = volume;
            }
            shown
        };
        // The server that snapferry runs on may have no boot volume here; IBM's always have one.
        let boot = own().find(|attachment| attachment.boot).map_or_else(
            || json!({ "id": "none", "name": "none", "href": href(base, &format!("instances/{}/volume_attachments/none", life.id)) }),
            attachment,
        );
        let interface = json!({
            "id": "0717-00000000-0000-4000-a000-000000000002",
            "name": "eth0",
            "href": href(base, &format!("instances/{}/network_interfaces/0", life.id)),
            "resource_type": "network_interface",
            "primary_ip": { "address": "10.240.64.4", "id": "ip", "name": "ip", "href": href(base, "ip"), "resource_type": "subnet_reserved_ip" },
            "subnet": self.catalog.subnet_reference(base, &instance.zone),
        });
        let mut shown = json!({
            "id": life.id,
            "crn": crn(&instance.zone, "instance", &life.id),
            "name": life.name,
            "href": href(base, &format!("instances/{}", life.id)),
            "created_at": life.created.to_rfc3339(),
            "resource_type": "instance",
            "resource_group": resource_group(),
            "status": life.state,
            "status_reasons": life.reasons(),
            "lifecycle_state": "stable",
            "lifecycle_reasons": [],
            "health_state": "ok",
            "health_reasons": [],
            "startable": true,
            "availability": { "class": "standard" },
            "availability_policy": { "host_failure": "restart", "preemption": "stop" },
            "bandwidth": 4000,
            "total_network_bandwidth": 3000,
            "total_volume_bandwidth": 1000,
            "volume_bandwidth_qos_mode": "weighted",
            "boot_volume_attachment": boot,
            "volume_attachments": own().map(attachment).collect::<Vec<_>>(),
            "cluster_network_attachments": [],
            "confidential_compute_mode": "disabled",
            "disks": [],
            "enable_secure_boot": false,
            "memory": 16,
            "threads_per_core": 2,
            "metadata_service": { "enabled": true, "protocol": "http", "response_hop_limit": 1 },
            "network_attachments": [],
            "network_interfaces": [interface.clone()],
            "primary_network_interface": interface,
            "profile": { "name": instance.profile, "href": href(base, &format!("instance/profiles/{}", instance.profile)), "resource_type": "instance_profile" },
            "reservation_affinity": { "policy": "disabled", "pool": [] },
            "software_attachments": [],
            "vcpu": { "architecture": "amd64", "count": 2, "manufacturer": "intel", "percentage": 100 },
            "vpc": self.catalog.vpc_reference(base),
            "zone": zone_reference(base, region, &instance.zone),
        });
        if let Some(image) = &instance.image {
            shown["image"] = json!({
                "id": image,
                "name": self.images.get(image).map_or("gone", |image| &image.life.name),
                "crn": crn(region, "image", image),
                "href": href(base, &format!("images/{image}")),
                "resource_type": "image",
            });
        }
        shown
    }

    fn instance(&self, id: &str) -> Result<&Instance, ApiError> {
        self.instances.get(id).ok_or_else(|| ApiError::not_found("instance", id))
    }

    pub(super) fn list_instances(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let shown = self
            .instances
            .values()
            .map(|instance| (&instance.life, self.show_instance(&request.base, instance)))
            .collect();
        page(request, "instances", "instances", shown)
    }

    pub(super) fn get_instance(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let instance = self.instance(request.id(0))?;
        Ok(ApiResponse::ok(self.show_instance(&request.base, instance)).etag(instance.life.etag()))
    }

    pub(super) fn create_instance(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
        jobs: &mut Vec<Job>,
    ) -> Result<ApiResponse, ApiError> {
        let name = request.name()?;
        if self.instances.values().any(|instance| instance.life.name == name) {
            return Err(ApiError::name_taken(&name));
        }
        let profile = request.required("/profile/name")?.to_owned();
        if !catalog::is_instance_profile(&profile) {
            return Err(ApiError::field(400, "bad_field", "profile.name", "There is no such profile."));
        }
        let zone = request.required("/zone/name")?.to_owned();
        let subnet = request
            .text("/primary_network_attachment/virtual_network_interface/subnet/id")
            .or_else(|| request.text("/primary_network_interface/subnet/id"))
            .ok_or_else(|| {
                ApiError::field(400, "missing_field", "primary_network_attachment", "The field is required.")
            })?;
        let subnet = self.catalog.subnets.iter().find(|found| found.life.id == subnet);
        if subnet.is_none_or(|subnet| subnet.zone.as_deref() != Some(&zone)) {
            return Err(ApiError::field(
                400,
                "bad_field",
                "subnet.id",
                "There is no such subnet in the zone.",
            ));
        }
        let region = self.catalog.region.clone();
        let volume_id = regional_id(&region);
        let volume_name = request
            .text("/boot_volume_attachment/volume/name")
            .map_or_else(|| format!("{name}-boot"), str::to_owned);
        if self.volumes.values().any(|volume| volume.life.name == volume_name) {
            return Err(ApiError::name_taken(&volume_name));
        }
        let image = request.text("/image/id").map(str::to_owned);
        let volume = match &image {
            None => self.new_volume(
                request,
                config,
                &volume_id,
                volume_name,
                zone.clone(),
                "/boot_volume_attachment/volume",
                jobs,
            )?,
            Some(id) => {
                let image = self.images.get(id).ok_or_else(|| ApiError::not_found("image", id))?;
                if !matches!(image.life.state.as_str(), "available" | "deprecated") {
                    return Err(ApiError::field(
                        400,
                        "invalid_state",
                        "image.id",
                        "The image is not available.",
                    ));
                }
                let mut life = Lifecycle::new(volume_id.clone(), volume_name, "pending", request.now);
                life = life.then("available", request.now.after(config.delays.volume));
                life.work = 1;
                jobs.push(Job::fill_volume(&region, &volume_id));
                Volume {
                    life,
                    capacity: image.minimum_size.unwrap_or(config.least_capacity),
                    profile: "general-purpose".to_owned(),
                    zone: zone.clone(),
                    operating_system: Some(image.operating_system.clone()),
                    source_snapshot: None,
                    hydrated_at: request.now,
                    tags: Vec::new(),
                }
            }
        };
        let id = zonal_id(&region, &zone);
        let life = Lifecycle::new(id.clone(), name, "pending", request.now)
            .then("running", request.now.after(config.delays.instance));
        self.instances.insert(id.clone(), Instance { life, zone, profile, image });
        self.add_boot_volume(&id, volume, request.now);
        let shown = self.show_instance(&request.base, self.instance(&id)?);
        Ok(ApiResponse::created(shown, &id))
    }

    pub(super) fn update_instance(&mut self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let name = request.name()?;
        if self
            .instances
            .values()
            .any(|instance| instance.life.name == name && instance.life.id != request.id(0))
        {
            return Err(ApiError::name_taken(&name));
        }
        let instance = self
            .instances
            .get_mut(request.id(0))
            .ok_or_else(|| ApiError::not_found("instance", request.id(0)))?;
        request.check_if_match(&instance.life.etag())?;
        instance.life.name = name;
        instance.life.version += 1;
        Ok(self.get_instance(request)?.resource_id(request.id(0)))
    }

    pub(super) fn delete_instance(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
    ) -> Result<ApiResponse, ApiError> {
        let instance = self
            .instances
            .get_mut(request.id(0))
            .ok_or_else(|| ApiError::not_found("instance", request.id(0)))?;
        if instance.life.state == "deleting" {
            return Err(ApiError::conflict("invalid_state", "The instance is being deleted."));
        }
        instance.life.enter("deleting", request.now.after(config.delays.deletion), Turn::Gone);
        Ok(ApiResponse::empty(204, request.id(0)))
    }

    /// Removes what belongs to a deleted server: its attachments, and the volumes that are to be deleted with
    /// it.
    pub(super) fn forget_server(&mut self, server: &Instance, now: Timestamp) {
        let (gone, kept) = std::mem::take(&mut self.attachments)
            .into_iter()
            .partition::<std::collections::BTreeMap<_, _>, _>(|(_, attachment)| {
                attachment.instance == server.life.id
            });
        self.attachments = kept;
        for attachment in gone.into_values().filter(|attachment| attachment.delete_volume) {
            if let Some(volume) = self.volumes.get_mut(&attachment.volume) {
                volume.life.enter("pending_deletion", now, Turn::Gone);
            }
        }
    }

    pub(super) fn act_on_instance(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
    ) -> Result<ApiResponse, ApiError> {
        let action_type = request.required("/type")?.to_owned();
        let instance = self
            .instances
            .get_mut(request.id(0))
            .ok_or_else(|| ApiError::not_found("instance", request.id(0)))?;
        let (through, into) = match action_type.as_str() {
            "start" => ("starting", "running"),
            "stop" => ("stopping", "stopped"),
            "reboot" => ("restarting", "running"),
            _ => {
                return Err(ApiError::field(400, "bad_field", "type", "An action is start, stop or reboot."));
            }
        };
        if instance.life.state != into || action_type == "reboot" {
            instance.life.enter(
                through,
                request.now.after(config.delays.instance),
                Turn::Into(into.to_owned()),
            );
        }
        let action = json!({
            "id": zonal_id(&self.catalog.region, &instance.zone),
            "href": request.href(&format!("instances/{}/actions/0", instance.life.id)),
            "created_at": request.now.to_rfc3339(),
            "status": "completed",
            "type": action_type,
            "force": false,
        });
        Ok(ApiResponse::created(action, request.id(0)))
    }
}

/// Adds a server whose boot volume is a copy of a disk, available from the start.
pub(super) fn seed(front: &Front, seed: &ServerSeed) -> io::Result<()> {
    let exists = front.with_cloud(|cloud| {
        let region = cloud.region(&seed.region)?;
        Some(region.instances.values().any(|instance| instance.life.name == seed.name))
    });
    match exists {
        None => {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no region {:?}", seed.region),
            ));
        }
        Some(true) => return Ok(()),
        Some(false) => {}
    }
    let capacity = disks::size_of(&seed.boot_disk)?.div_ceil(GIB).max(front.config.least_capacity);
    let (now, id) = (Timestamp::now(), regional_id(&seed.region));
    let volume = Volume {
        life: Lifecycle::new(id, format!("{}-boot", seed.name), "available", now),
        capacity,
        profile: if seed.generation == 2 { "sdp" } else { "general-purpose" }.to_owned(),
        zone: format!("{}-1", seed.region),
        operating_system: Some(seed.operating_system.clone()),
        source_snapshot: None,
        hydrated_at: now,
        tags: Vec::new(),
    };
    disks::copy(&seed.boot_disk, &volume.file(&front.config.folder), capacity * GIB)?;
    front.with_cloud(|cloud| {
        if let Some(region) = cloud.region(&seed.region) {
            let server = region.add_server(&seed.region, &seed.name, 1, now);
            if let Some(server) = region.instances.get_mut(&server).filter(|_| !seed.running) {
                server.life.set_final_state("stopped");
            }
            region.add_boot_volume(&server, volume, now);
        }
    });
    Ok(())
}
