//! Tests that compare requests field by field with the bodies in IBM's API reference and documentation.

use std::time::{Duration, SystemTime};

use serde_json::json;

use super::*;
use crate::vpc::names::{
    Crn, ImageId, KeyId, ResourceGroupId, ResourceName, SecurityGroupId, SnapshotId, SubnetId, Tag, VolumeId,
    VpcId,
};

fn name(name: &str) -> ResourceName {
    ResourceName::new(name).expect("a name")
}

#[test]
fn a_snapshot_with_tags_a_group_and_a_clone() {
    let prototype = SnapshotPrototype {
        name: name("web01-202608211530"),
        source: VolumeId::new("r006-1"),
        tags: vec![Tag::new("managed-by:x").expect("a tag"), Tag::new("server:web01").expect("a tag")],
        resource_group: Some(ResourceGroupId::new("fee8")),
        clone_zones: vec!["us-south-1".to_owned()],
    };
    let expected = json!({
        "name": "web01-202608211530", "source_volume": { "id": "r006-1" }, "user_tags": ["managed-by:x", "server:web01"],
        "resource_group": { "id": "fee8" }, "clones": [{ "zone": { "name": "us-south-1" } }],
    });
    assert_eq!(prototype.body(), expected);
}

#[test]
fn a_volume_from_a_snapshot() {
    let prototype = VolumePrototype {
        name: name("tmp-web01"),
        profile: "sdp".to_owned(),
        zone: "us-south-1".to_owned(),
        source: SnapshotId::new("r006-2"),
        capacity: Some(100),
        bandwidth: Some(8192),
        iops: Some(3000),
        encryption_key: Some(Crn::new("crn:v1:key")),
        tags: vec![Tag::new("managed-by:x").expect("a tag")],
        resource_group: None,
    };
    let expected = json!({
        "name": "tmp-web01", "profile": { "name": "sdp" }, "zone": { "name": "us-south-1" }, "source_snapshot": { "id": "r006-2" },
        "capacity": 100, "bandwidth": 8192, "iops": 3000, "encryption_key": { "crn": "crn:v1:key" }, "user_tags": ["managed-by:x"],
    });
    assert_eq!(prototype.body(), expected);
}

#[test]
fn an_image_from_an_object_and_from_a_volume() {
    let file = ImageOrigin::File {
        href: "cos://us-east/my-bucket/web01-202608211530.qcow2".to_owned(),
        operating_system: "red-9-amd64".to_owned(),
    };
    let prototype = ImagePrototype { name: name("web01-202608211530"), origin: file, resource_group: None };
    let expected = json!({
        "name": "web01-202608211530", "file": { "href": "cos://us-east/my-bucket/web01-202608211530.qcow2" },
        "operating_system": { "name": "red-9-amd64" },
    });
    assert_eq!(prototype.body(), expected);
    // A request with a volume has no operating system.
    let volume = ImagePrototype { origin: ImageOrigin::Volume(VolumeId::new("r006-1")), ..prototype };
    assert_eq!(volume.body(), json!({ "name": "web01-202608211530", "source_volume": { "id": "r006-1" } }));
}

#[test]
fn an_images_schedule_is_set_and_cleared() {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045);
    let patch =
        ImagePatch { name: None, deprecation: Some(Schedule::At(at)), obsolescence: Some(Schedule::Never) };
    assert_eq!(patch.body(), json!({ "deprecation_at": "2026-01-02T03:04:05Z", "obsolescence_at": null }));
}

#[test]
fn a_server_from_an_image_and_from_a_snapshot() {
    let prototype = InstancePrototype {
        name: name("web01"),
        vpc: VpcId::new("v"),
        zone: "us-south-1".to_owned(),
        profile: "bx2-2x8".to_owned(),
        boot: BootFrom::Image(ImageId::new("i")),
        boot_profile: None,
        boot_volume_name: None,
        subnet: SubnetId::new("s"),
        address: Some("10.0.0.5".to_owned()),
        security_groups: vec![SecurityGroupId::new("g")],
        keys: vec![KeyId::new("k")],
        resource_group: None,
        tags: Vec::new(),
        user_data: None,
    };
    let mut expected = json!({
        "name": "web01", "vpc": { "id": "v" }, "zone": { "name": "us-south-1" }, "profile": { "name": "bx2-2x8" },
        "image": { "id": "i" }, "keys": [{ "id": "k" }],
        "primary_network_attachment": { "virtual_network_interface": {
            "subnet": { "id": "s" }, "primary_ip": { "address": "10.0.0.5" }, "security_groups": [{ "id": "g" }],
        } },
    });
    assert_eq!(prototype.body(), expected);
    let boot = BootFrom::SnapshotCrn(Crn::new("crn:v1:snapshot"));
    let restored = InstancePrototype { boot, boot_profile: Some("general-purpose".to_owned()), ..prototype };
    expected.as_object_mut().expect("an object").remove("image");
    expected["boot_volume_attachment"] = json!({
        "delete_volume_on_instance_delete": true,
        "volume": { "profile": { "name": "general-purpose" }, "source_snapshot": { "crn": "crn:v1:snapshot" } },
    });
    assert_eq!(restored.body(), expected);
}
