"""Drives the simulated cloud through IBM's official SDK: every call that snapferry makes, models parsed, pages followed, errors caught.

Started by tests/it/region/sdk.rs, which gives the addresses in the environment.
"""

import os
import time

from ibm_cloud_sdk_core import ApiException
from ibm_cloud_sdk_core.authenticators import IAMAuthenticator
from ibm_vpc import vpc_v1
from ibm_vpc.vpc_v1 import (
    ImagesPager,
    InstancesPager,
    OperatingSystemsPager,
    SnapshotsPager,
    SubnetsPager,
    VolumesPager,
    VpcsPager,
)

LONGEST_WAIT = 60.0


def service(url):
    """The SDK's client, at an address of ours."""
    authenticator = IAMAuthenticator(os.environ["API_KEY"], url=os.environ["IAM"])
    client = vpc_v1.VpcV1(version="2026-03-24", authenticator=authenticator)
    client.set_service_url(url)
    return client


def wait(what, look, wanted, terminal=("failed",)):
    """Asks until the state is the one wanted."""
    until = time.monotonic() + LONGEST_WAIT
    while True:
        state = look()
        if state == wanted:
            return
        assert state not in terminal, f"{what} is {state}"
        assert time.monotonic() < until, f"{what} is still {state}"
        time.sleep(0.02)


def gone(what, look):
    """Asks until it is not there."""
    until = time.monotonic() + LONGEST_WAIT
    while True:
        try:
            look()
        except ApiException as err:
            assert err.status_code == 404, err
            return
        assert time.monotonic() < until, f"{what} is still there"
        time.sleep(0.02)


def refused(code, status, call, **arguments):
    """A call that has to fail, in IBM's own form."""
    try:
        call(**arguments)
    except ApiException as err:
        assert err.status_code == status, err
        body = err.http_response.json()
        assert body["errors"][0]["code"] == code, body
        assert body["errors"][0]["message"] and body["trace"], body
        return
    raise AssertionError(f"{call.__name__} was not refused")


def parsed(model, answer):
    """A model that takes the answer in and gives it out again."""
    read = model.from_dict(answer)
    assert read.id == answer["id"]
    assert model.from_dict(read.to_dict()) == read
    return read


home, away = service(os.environ["HOME_API"]), service(os.environ["AWAY_API"])

# Servers.
servers = InstancesPager(client=home, limit=1).get_all()
assert {server["name"] for server in servers} == {"ferry", "web01"}, servers
for server in servers:
    parsed(vpc_v1.Instance, server)
web = home.list_instances(name="web01").get_result()["instances"][0]
web = parsed(vpc_v1.Instance, home.get_instance(web["id"]).get_result())
boot = web.boot_volume_attachment.volume.id
own = home.get_instance(os.environ["OWN"]).get_result()["id"]

# A snapshot, its tags, its clones.
snapshot = home.create_snapshot({"name": "sdk-1", "source_volume": {"id": boot}, "user_tags": ["Made:By-SDK"]}).get_result()
parsed(vpc_v1.Snapshot, snapshot)
wait("snapshot", lambda: home.get_snapshot(snapshot["id"]).get_result()["lifecycle_state"], "stable")
refused("validation_unique_failed", 400, home.create_snapshot, snapshot_prototype={"name": "sdk-1", "source_volume": {"id": boot}})
refused("snapshot_id_not_found", 404, home.get_snapshot, id="r006-none")
tagged = SnapshotsPager(client=home, limit=10, tag="made:by-sdk").get_all()
assert [found["name"] for found in tagged] == ["sdk-1"], tagged
answer = home.get_snapshot(snapshot["id"])
refused("missing_header", 400, home.update_snapshot, id=snapshot["id"], snapshot_patch={"user_tags": ["a"]})
patched = home.update_snapshot(snapshot["id"], {"user_tags": ["a", "b"]}, if_match=answer.get_headers()["ETag"]).get_result()
assert patched["user_tags"] == ["a", "b"], patched
home.create_snapshot_clone(snapshot["id"], "us-south-1")
wait("clone", lambda: home.get_snapshot_clone(snapshot["id"], "us-south-1").get_result()["available"], True)
clones = vpc_v1.SnapshotCloneCollection.from_dict(home.list_snapshot_clones(snapshot["id"]).get_result())
assert len(clones.clones) == 1
home.delete_snapshot_clone(snapshot["id"], "us-south-1")

# A copy in the other region.
copy = away.create_snapshot({"name": "sdk-1", "source_snapshot": {"crn": snapshot["crn"]}}).get_result()
parsed(vpc_v1.Snapshot, copy)
wait("copy", lambda: away.get_snapshot(copy["id"]).get_result()["lifecycle_state"], "stable")
away.delete_snapshot(copy["id"])
gone("copy", lambda: away.get_snapshot(copy["id"]))

# A volume from it, attached and detached.
prototype = {
    "name": "sdk-1",
    "profile": {"name": "10iops-tier"},
    "zone": {"name": "us-south-1"},
    "source_snapshot": {"id": snapshot["id"]},
}
refused(
    "volume_profile_storage_generation_mismatch", 400, home.create_volume, volume_prototype={**prototype, "profile": {"name": "sdp"}}
)
volume = home.create_volume(prototype).get_result()
parsed(vpc_v1.Volume, volume)
wait("volume", lambda: home.get_volume(volume["id"]).get_result()["status"], "available")
assert len(VolumesPager(client=home, limit=1, zone_name="us-south-1").get_all()) == 2
attachment = home.create_instance_volume_attachment(own, {"id": volume["id"]}, name="sdk-1").get_result()
parsed(vpc_v1.VolumeAttachment, attachment)
wait("attachment", lambda: home.get_instance_volume_attachment(own, attachment["id"]).get_result()["status"], "attached")
attached = home.list_instance_volume_attachments(own).get_result()["volume_attachments"]
assert attached[0]["device"]["id"], attached
parsed(vpc_v1.Volume, home.get_volume(volume["id"]).get_result())
refused("volume_in_use", 409, home.delete_volume, id=volume["id"])
home.delete_instance_volume_attachment(own, attachment["id"])
gone("attachment", lambda: home.get_instance_volume_attachment(own, attachment["id"]))
home.delete_volume(volume["id"])
gone("volume", lambda: home.get_volume(volume["id"]))
home.delete_snapshot(snapshot["id"])
gone("snapshot", lambda: home.get_snapshot(snapshot["id"]))

# Images, by the page.
images = ImagesPager(client=home, limit=50, visibility="private").get_all()
assert len(images) == 120, len(images)
for image in images[:3]:
    parsed(vpc_v1.Image, image)
prototype = {
    "name": "sdk-image",
    "file": {"href": "cos://us-east/images/web01.qcow2"},
    "operating_system": {"name": "debian-12-amd64"},
}
refused(
    "cos_invalid_file_extension",
    400,
    away.create_image,
    image_prototype={**prototype, "file": {"href": "cos://us-east/images/web01.QCOW2"}},
)
image = away.create_image(prototype).get_result()
parsed(vpc_v1.Image, image)
wait("image", lambda: away.get_image(image["id"]).get_result()["status"], "available")
image = parsed(vpc_v1.Image, away.get_image(image["id"]).get_result())
assert len(image.file.checksums.sha256) == 64
assert away.update_image(image.id, {"name": "sdk-latest"}).get_result()["name"] == "sdk-latest"
job = away.create_image_export_job(image.id, {"name": "images"}, name="sdk-export").get_result()
parsed(vpc_v1.ImageExportJob, job)
wait("export", lambda: away.get_image_export_job(image.id, job["id"]).get_result()["status"], "succeeded")
assert away.list_image_export_jobs(image.id).get_result()["export_jobs"][0]["storage_object"]["name"] == "sdk-export.qcow2"
away.delete_image_export_job(image.id, job["id"])
away.deprecate_image(image.id)
away.obsolete_image(image.id)

# What a new server needs, and the server.
assert len(home.list_regions().get_result()["regions"]) == 2
assert len(home.list_region_zones("us-south").get_result()["zones"]) == 3
parsed(vpc_v1.VPC, VpcsPager(client=home, limit=10).get_all()[0])
subnets = SubnetsPager(client=home, limit=2).get_all()
assert len(subnets) == 3
subnet = next(subnet for subnet in subnets if subnet["zone"]["name"] == "us-south-1")
parsed(vpc_v1.Subnet, subnet)
key = parsed(vpc_v1.Key, home.list_keys().get_result()["keys"][0])
parsed(vpc_v1.SecurityGroup, home.list_security_groups().get_result()["security_groups"][0])
vpc_v1.VolumeProfileCollection.from_dict(home.list_volume_profiles().get_result())
assert any(profile["name"] == "bx2-2x8" for profile in home.list_instance_profiles().get_result()["profiles"])
systems = OperatingSystemsPager(client=home, limit=4).get_all()
assert any(not system["allow_user_image_creation"] for system in systems)
vpc_v1.OperatingSystem.from_dict(home.get_operating_system("red-9-amd64").get_result())
server = home.create_instance(
    {
        "name": "sdk-server",
        "vpc": {"id": subnet["vpc"]["id"]},
        "zone": {"name": "us-south-1"},
        "profile": {"name": "bx2-2x8"},
        "image": {"id": images[0]["id"]},
        "keys": [{"id": key.id}],
        "primary_network_attachment": {"virtual_network_interface": {"subnet": {"id": subnet["id"]}}},
    }
).get_result()
parsed(vpc_v1.Instance, server)
wait("server", lambda: home.get_instance(server["id"]).get_result()["status"], "running")
home.create_instance_action(server["id"], "stop")
wait("server", lambda: home.get_instance(server["id"]).get_result()["status"], "stopped")
home.delete_instance(server["id"])
gone("server", lambda: home.get_instance(server["id"]))
print("done")
