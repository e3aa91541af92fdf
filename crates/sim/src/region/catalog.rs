//! Resources that exist from the start: zones, profiles, operating systems, and a VPC with a subnet in each
//! zone.

use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::timestamp::Timestamp;
use super::config::RegionConfig;
use super::lifecycle::Lifecycle;
use super::lists::{page, unpaged};
use super::request::{ApiError, ApiRequest, ApiResponse, href};
use super::route::RegionOperation;

/// Number of zones in a region.
pub(super) const ZONES: u32 = 3;
/// Operating systems: name, display name, family, true if users may import images of it.
const OPERATING_SYSTEMS: [(&str, &str, &str, bool); 9] = [
    (
        "debian-12-amd64",
        "Debian GNU/Linux 12.x Bookworm/Stable - Minimal Install (amd64)",
        "Debian GNU/Linux",
        true,
    ),
    (
        "debian-11-amd64",
        "Debian GNU/Linux 11.x Bullseye/Stable - Minimal Install (amd64)",
        "Debian GNU/Linux",
        true,
    ),
    (
        "ubuntu-24-04-amd64",
        "Ubuntu Linux 24.04 LTS Noble Numbat Minimal Install (amd64)",
        "Ubuntu Linux",
        true,
    ),
    (
        "ubuntu-22-04-amd64",
        "Ubuntu Linux 22.04 LTS Jammy Jellyfish Minimal Install (amd64)",
        "Ubuntu Linux",
        true,
    ),
    (
        "red-9-amd64",
        "Red Hat Enterprise Linux 9.x - Minimal Install (amd64)",
        "Red Hat Enterprise Linux",
        true,
    ),
    (
        "red-9-amd64-byol",
        "Red Hat Enterprise Linux 9.x - Bring your own License (amd64)",
        "Red Hat Enterprise Linux",
        true,
    ),
    ("centos-stream-9-amd64", "CentOS Stream 9 - Minimal Install (amd64)", "CentOS", true),
    ("windows-2022-amd64", "Windows Server 2022 Standard Edition (amd64)", "Windows Server", true),
    // One that users may not import, as IBM has some.
    (
        "red-9-amd64-sap-hana",
        "Red Hat Enterprise Linux 9.x - SAP HANA (amd64)",
        "Red Hat Enterprise Linux",
        false,
    ),
];
/// Volume profiles: name, family, storage generation.
const VOLUME_PROFILES: [(&str, &str, u32); 5] = [
    ("general-purpose", "tiered", 1),
    ("5iops-tier", "tiered", 1),
    ("10iops-tier", "tiered", 1),
    ("custom", "custom", 1),
    ("sdp", "defined_performance", 2),
];
/// Server profiles: name, virtual CPUs, GiB of memory.
const INSTANCE_PROFILES: [(&str, u32, u32); 4] =
    [("bx2-2x8", 2, 8), ("cx2-2x4", 2, 4), ("mx2-2x16", 2, 16), ("bx3d-4x20", 4, 20)];

/// VPC, subnet, SSH key or security group.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CatalogEntry {
    pub life: Lifecycle,
    pub zone: Option<String>,
    pub cidr: Option<String>,
}

/// The region's VPC, with subnets, SSH keys and security groups.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Catalog {
    pub region: String,
    pub vpcs: Vec<CatalogEntry>,
    pub subnets: Vec<CatalogEntry>,
    pub keys: Vec<CatalogEntry>,
    pub groups: Vec<CatalogEntry>,
}

/// Returns the prefix of a region's ids: IBM's if the region is known, or else a made-up one.
fn prefix(region: &str) -> String {
    match region {
        "us-south" => "r006".to_owned(),
        "us-east" => "r014".to_owned(),
        "eu-de" => "r010".to_owned(),
        "eu-gb" => "r018".to_owned(),
        other => format!("r{:03}", other.bytes().map(u32::from).sum::<u32>() % 1000),
    }
}

fn uuid() -> String {
    let (a, b) = (rand::rng().random::<u64>(), rand::rng().random::<u64>());
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    )
}

/// Creates an id for a regional resource.
pub(super) fn regional_id(region: &str) -> String {
    format!("{}-{}", prefix(region), uuid())
}

/// Creates an id for a zonal resource: `0717-...`, `0727-...` and so on in us-south, as IBM's.
pub(super) fn zonal_id(region: &str, zone: &str) -> String {
    let family = match region {
        "us-south" => 7,
        other => other.bytes().map(u32::from).sum::<u32>() % 7,
    };
    format!("0{family}{}7-{}", zone.rsplit('-').next().unwrap_or("1"), uuid())
}

pub(super) fn crn(location: &str, kind: &str, id: &str) -> String {
    format!("crn:v1:bluemix:public:is:{location}:a/0123456789abcdef0123456789abcdef::{kind}:{id}")
}

/// Returns the account's only resource group.
pub(super) fn resource_group() -> Value {
    let id = "fee82deba12e4c0fb69c3b09d1f12345";
    json!({ "id": id, "name": "Default", "href": format!("https://resource-controller.cloud.ibm.com/v2/resource_groups/{id}") })
}

pub(super) fn zone_reference(base: &str, region: &str, zone: &str) -> Value {
    json!({ "name": zone, "href": href(base, &format!("regions/{region}/zones/{zone}")) })
}

pub(super) fn volume_profile_reference(base: &str, name: &str) -> Value {
    json!({ "name": name, "href": href(base, &format!("volume/profiles/{name}")) })
}

pub(super) fn operating_system(base: &str, name: &str) -> Option<Value> {
    let (name, display, family, importable) = OPERATING_SYSTEMS.iter().find(|(found, ..)| *found == name)?;
    Some(json!({
        "name": name,
        "display_name": display,
        "family": family,
        "vendor": family.split(' ').next(),
        "version": "1",
        "architecture": "amd64",
        "allow_user_image_creation": importable,
        "dedicated_host_only": false,
        "user_data_format": "cloud_init",
        "href": href(base, &format!("operating_systems/{name}")),
    }))
}

/// Returns the storage generation of a volume profile.
pub(super) fn generation_of(profile: &str) -> Option<u32> {
    VOLUME_PROFILES.iter().find(|(name, ..)| *name == profile).map(|(.., generation)| *generation)
}

pub(super) fn is_instance_profile(name: &str) -> bool {
    INSTANCE_PROFILES.iter().any(|(found, ..)| *found == name)
}

pub(super) fn regions(
    config: &RegionConfig,
    url: &str,
    operation: RegionOperation,
    request: &ApiRequest,
) -> Result<ApiResponse, ApiError> {
    let shown = |name: &String| {
        json!({
            "name": name,
            "status": "available",
            "endpoint": format!("{url}/{name}"),
            "href": request.href(&format!("regions/{name}")),
        })
    };
    if operation == RegionOperation::GetRegion {
        let found = config.regions.iter().find(|name| *name == request.id(0));
        return found
            .map(|name| ApiResponse::ok(shown(name)))
            .ok_or_else(|| ApiError::not_found("region", request.id(0)));
    }
    Ok(ApiResponse::ok(json!({ "regions": config.regions.iter().map(shown).collect::<Vec<_>>() })))
}

/// Returns the lifecycle of an entry that has only a name, for lists.
fn listed(name: &str) -> Lifecycle {
    Lifecycle::new(name.to_owned(), name.to_owned(), "available", Timestamp::default())
}

impl Catalog {
    /// Creates the region's resources, unless it has them already.
    pub fn seed(&mut self, region: &str, now: Timestamp) {
        region.clone_into(&mut self.region);
        if !self.vpcs.is_empty() {
            return;
        }
        let entry = |id: String, name: &str| CatalogEntry {
            life: Lifecycle::new(id, name.to_owned(), "available", now),
            zone: None,
            cidr: None,
        };
        self.vpcs.push(entry(regional_id(region), "main"));
        self.keys.push(entry(regional_id(region), "admin"));
        self.groups.push(entry(regional_id(region), "main-default"));
        for number in 1..=ZONES {
            let zone = format!("{region}-{number}");
            let subnet = entry(zonal_id(region, &zone), &format!("main-{number}"));
            self.subnets.push(CatalogEntry {
                zone: Some(zone),
                cidr: Some(format!("10.240.{}.0/24", number * 64)),
                ..subnet
            });
        }
    }

    pub fn has_zone(&self, zone: &str) -> bool {
        (1..=ZONES).any(|number| zone == format!("{}-{number}", self.region))
    }

    pub fn vpc_reference(&self, base: &str) -> Value {
        self.vpcs.first().map_or(Value::Null, |vpc| self.reference(base, "vpcs", "vpc", vpc))
    }

    pub fn subnet_reference(&self, base: &str, zone: &str) -> Value {
        let subnet = self.subnets.iter().find(|subnet| subnet.zone.as_deref() == Some(zone));
        subnet.map_or(Value::Null, |subnet| self.reference(base, "subnets", "subnet", subnet))
    }

    fn reference(&self, base: &str, path: &str, kind: &str, entry: &CatalogEntry) -> Value {
        json!({
            "id": entry.life.id,
            "name": entry.life.name,
            "crn": crn(&self.region, kind, &entry.life.id),
            "href": href(base, &format!("{path}/{}", entry.life.id)),
            "resource_type": kind,
        })
    }

    fn other_reference(&self, base: &str, path: &str, kind: &str, name: &str) -> Value {
        let id = format!("{}-00000000-0000-4000-a000-000000000001", prefix(&self.region));
        let href = href(base, &format!("{path}/{id}"));
        json!({ "id": id, "name": name, "crn": crn(&self.region, kind, &id), "href": href, "resource_type": kind })
    }

    pub fn list_operating_systems(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let all: Vec<_> = OPERATING_SYSTEMS
            .iter()
            .map(|(name, ..)| (listed(name), operating_system(&request.base, name)))
            .collect();
        page(
            request,
            "operating_systems",
            "operating_systems",
            all.iter().map(|(life, shown)| (life, json!(shown))).collect(),
        )
    }

    pub fn get_operating_system(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        operating_system(&request.base, request.id(0))
            .map(ApiResponse::ok)
            .ok_or_else(|| ApiError::not_found("operating_system", request.id(0)))
    }

    pub fn list_zones(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let region = &self.region;
        if request.id(0) != region {
            return Err(ApiError::not_found("region", request.id(0)));
        }
        let zones = (1..=ZONES).map(|number| {
            let name = format!("{region}-{number}");
            json!({
                "name": name,
                "status": "available",
                "href": request.href(&format!("regions/{region}/zones/{name}")),
                "region": { "name": region, "href": request.href(&format!("regions/{region}")) },
            })
        });
        Ok(ApiResponse::ok(json!({ "zones": zones.collect::<Vec<_>>() })))
    }

    pub fn list_vpcs(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let shown = |vpc: &CatalogEntry| {
            json!({
                "id": vpc.life.id,
                "name": vpc.life.name,
                "crn": crn(&self.region, "vpc", &vpc.life.id),
                "href": request.href(&format!("vpcs/{}", vpc.life.id)),
                "created_at": vpc.life.created.to_rfc3339(),
                "resource_type": "vpc",
                "resource_group": resource_group(),
                "status": "available",
                "health_state": "ok",
                "health_reasons": [],
                "classic_access": false,
                "cse_source_ips": [],
                "public_address_ranges": [],
                "default_network_acl": self.other_reference(&request.base, "network_acls", "network-acl", "main-default"),
                "default_routing_table": self.other_reference(&request.base, "routing_tables", "vpc_routing_table", "main-default"),
                "default_security_group": self.groups.first().map(|group| self.reference(&request.base, "security_groups", "security-group", group)),
                "dns": { "enable_hub": false, "resolution_binding_count": 0, "resolver": { "type": "system", "configuration": "default", "servers": [] } },
            })
        };
        page(request, "vpcs", "vpcs", self.vpcs.iter().map(|vpc| (&vpc.life, shown(vpc))).collect())
    }

    pub fn list_subnets(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let shown = |subnet: &CatalogEntry| {
            let zone = subnet.zone.as_deref().unwrap_or_default();
            json!({
                "id": subnet.life.id,
                "name": subnet.life.name,
                "crn": crn(zone, "subnet", &subnet.life.id),
                "href": request.href(&format!("subnets/{}", subnet.life.id)),
                "created_at": subnet.life.created.to_rfc3339(),
                "resource_type": "subnet",
                "resource_group": resource_group(),
                "status": "available",
                "ip_version": "ipv4",
                "ipv4_cidr_block": subnet.cidr,
                "available_ipv4_address_count": 251,
                "total_ipv4_address_count": 256,
                "network_acl": self.other_reference(&request.base, "network_acls", "network-acl", "main-default"),
                "routing_table": self.other_reference(&request.base, "routing_tables", "vpc_routing_table", "main-default"),
                "vpc": self.vpc_reference(&request.base),
                "zone": zone_reference(&request.base, &self.region, zone),
            })
        };
        page(
            request,
            "subnets",
            "subnets",
            self.subnets.iter().map(|subnet| (&subnet.life, shown(subnet))).collect(),
        )
    }

    pub fn list_keys(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let shown = |key: &CatalogEntry| {
            json!({
                "id": key.life.id,
                "name": key.life.name,
                "crn": crn(&self.region, "key", &key.life.id),
                "href": request.href(&format!("keys/{}", key.life.id)),
                "created_at": key.life.created.to_rfc3339(),
                "fingerprint": "SHA256:yxavE4CIOL2NlsqcurRO3xGjkP6m/0mp8ugojH5yxlY",
                "length": 256,
                "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK0wmN/Cr3JXqmLW7u+g9pTh+wyqDHpSQEIQczXkVx9q",
                "type": "ed25519",
                "resource_group": resource_group(),
            })
        };
        page(request, "keys", "keys", self.keys.iter().map(|key| (&key.life, shown(key))).collect())
    }

    pub fn list_security_groups(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let shown = |group: &CatalogEntry| {
            json!({
                "id": group.life.id,
                "name": group.life.name,
                "crn": crn(&self.region, "security-group", &group.life.id),
                "href": request.href(&format!("security_groups/{}", group.life.id)),
                "created_at": group.life.created.to_rfc3339(),
                "resource_group": resource_group(),
                "rules": [],
                "targets": [],
                "vpc": self.vpc_reference(&request.base),
            })
        };
        let vpc = self.vpcs.first().map(|vpc| vpc.life.id.as_str());
        let matches = request.query("vpc.id").is_none_or(|id| Some(id) == vpc);
        let groups =
            self.groups.iter().filter(|_| matches).map(|group| (&group.life, shown(group))).collect();
        page(request, "security_groups", "security_groups", groups)
    }

    pub fn list_volume_profiles(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let fixed = |kind: &str, value: Value| json!({ "type": kind, "value": value });
        let all: Vec<_> = VOLUME_PROFILES
            .iter()
            .map(|(name, family, generation)| {
                let shown = json!({
                    "name": name,
                    "family": family,
                    "href": request.href(&format!("volume/profiles/{name}")),
                    "storage_generation": fixed("fixed", json!(generation)),
                    "adjustable_capacity_states": { "type": "enum", "values": ["attached"] },
                    "adjustable_iops_states": { "type": "enum", "values": ["attached"] },
                    "boot_capacity": { "type": "range", "min": 10, "max": 250, "step": 1, "default": 100 },
                    "capacity": { "type": "range", "min": 10, "max": 16000, "step": 1, "default": 100 },
                    "iops": { "type": "range", "min": 3000, "max": 48000, "step": 1, "default": 3000 },
                    "bandwidth": { "type": "range", "min": 393, "max": 8192, "step": 1, "default": 393 },
                });
                (listed(name), shown)
            })
            .collect();
        page(
            request,
            "volume/profiles",
            "profiles",
            all.iter().map(|(life, shown)| (life, shown.clone())).collect(),
        )
    }

    pub fn list_instance_profiles(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let fixed = |value: Value| json!({ "type": "fixed", "value": value });
        let all: Vec<_> = INSTANCE_PROFILES
            .iter()
            .map(|(name, cpus, memory)| {
                let shown = json!({
                    "name": name,
                    "family": "balanced",
                    "href": request.href(&format!("instance/profiles/{name}")),
                    "resource_type": "instance_profile",
                    "status": "current",
                    "availability_class": { "type": "fixed", "value": "standard" },
                    "bandwidth": fixed(json!(4000)),
                    "cluster_network_attachment_count": { "type": "enum", "values": [] },
                    "confidential_compute_modes": { "type": "enum", "values": ["disabled"], "default": "disabled" },
                    "disks": [],
                    "memory": fixed(json!(memory)),
                    "network_attachment_count": { "type": "range", "min": 1, "max": 5 },
                    "network_bandwidth_mode": { "type": "fixed", "value": "fixed" },
                    "network_interface_count": { "type": "range", "min": 1, "max": 5 },
                    "os_architecture": { "type": "enum", "values": ["amd64"], "default": "amd64" },
                    "port_speed": fixed(json!(1000)),
                    "reservation_terms": { "type": "enum", "values": [] },
                    "secure_boot_modes": { "type": "enum", "values": [false], "default": false },
                    "supported_cluster_network_profiles": [],
                    "threads_per_core": { "type": "enum", "values": [2], "default": 2 },
                    "total_volume_bandwidth": fixed(json!(1000)),
                    "vcpu_architecture": { "type": "fixed", "value": "amd64" },
                    "vcpu_burst_limit": fixed(json!(100)),
                    "vcpu_count": fixed(json!(cpus)),
                    "vcpu_manufacturer": { "type": "fixed", "value": "intel" },
                    "vcpu_percentage": { "type": "enum", "values": [100], "default": 100 },
                    "volume_bandwidth_qos_modes": { "type": "enum", "values": ["weighted"], "default": "weighted" },
                    "zones": (1..=ZONES).map(|n| zone_reference(&request.base, &self.region, &format!("{}-{n}", self.region))).collect::<Vec<_>>(),
                });
                (listed(name), shown)
            })
            .collect();
        // The list has had pages since 2026-04-07; a client that requests an older version gets it as a
        // whole.
        if request.query("version").is_some_and(|version| version < "2026-04-07") {
            return Ok(unpaged(
                request,
                "profiles",
                all.iter().map(|(life, shown)| (life, shown.clone())).collect(),
            ));
        }
        page(
            request,
            "instance/profiles",
            "profiles",
            all.iter().map(|(life, shown)| (life, shown.clone())).collect(),
        )
    }
}
