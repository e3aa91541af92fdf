# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {}

variables {
  name              = "web01"
  image_id          = "image"
  profile           = "bx2-2x8"
  vpc_id            = "vpc"
  zone              = "us-south-1"
  subnet_id         = "subnet"
  security_group_id = "group"
  key_ids           = ["key"]
  resource_group_id = "group"
}

run "plain" {
  command = plan

  assert {
    condition     = ibm_is_instance.this.metadata_service[0].enabled == false && length(ibm_is_instance.this.primary_network_interface[0].primary_ip) == 0
    error_message = "No metadata service and any address, unless it is asked for."
  }
}

run "with_a_profile" {
  command = plan

  variables {
    trusted_profile_id     = "Profile-1"
    metadata_protocol      = "https"
    total_volume_bandwidth = 6000
    ip                     = "10.0.0.5"
  }

  assert {
    condition = (
      ibm_is_instance.this.metadata_service[0].enabled
      && ibm_is_instance.this.metadata_service[0].response_hop_limit == 1
      && ibm_is_instance.this.default_trusted_profile_auto_link
    )
    error_message = "A profile is of no use without the metadata service and the link."
  }

  assert {
    condition     = ibm_is_instance.this.primary_network_interface[0].primary_ip[0].address == "10.0.0.5"
    error_message = "It has to get the address that it is given."
  }
}

run "name_in_capitals" {
  command = plan

  variables {
    name = "Web01"
  }

  expect_failures = [var.name]
}

run "starved_network" {
  command = plan

  variables {
    total_volume_bandwidth = 100
  }

  expect_failures = [var.total_volume_bandwidth]
}

run "tagged" {
  command = plan

  variables {
    resource_tags = ["team:storage"]
    access_tags   = ["env:prod"]
  }

  assert {
    condition     = ibm_is_instance.this.tags == toset(["team:storage"]) && ibm_is_instance.this.access_tags == toset(["env:prod"])
    error_message = "A server has the tags that it is given."
  }
}
