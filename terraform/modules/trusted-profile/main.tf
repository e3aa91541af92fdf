# What a conversion server is to IBM Cloud: a trusted profile, with the rights that snapferry needs and no key to lose.

locals {
  # What jobs make and remove, by the attribute that stands for it in VPC's access policies.
  made = {
    volumes   = "volumeId"
    snapshots = "snapshotId"
    images    = "imageId"
  }
}

resource "ibm_iam_trusted_profile" "this" {
  name        = var.name
  description = "snapferry: conversion servers"
}

# Snapshots and volumes are made in the source region, images in the recovery region: so no region is named.
resource "ibm_iam_trusted_profile_policy" "made" {
  for_each = local.made

  iam_id      = ibm_iam_trusted_profile.this.iam_id
  roles       = ["Editor"]
  description = "snapferry: takes, restores, imports and deletes ${each.key}"

  resources {
    service           = "is"
    resource_group_id = var.resource_group_id
    attributes = {
      (each.value) = "*"
    }
  }
}

# Servers that are carried are looked at; their state is never changed.
resource "ibm_iam_trusted_profile_policy" "sources" {
  iam_id      = ibm_iam_trusted_profile.this.iam_id
  roles       = ["Viewer"]
  description = "snapferry: finds servers and their boot volumes"

  resources {
    service           = "is"
    resource_group_id = var.resource_group_id
    attributes = {
      instanceId = "*"
    }
  }
}

# Attaching a volume changes the server that it is attached to: conversion servers themselves, and no other.
resource "ibm_iam_trusted_profile_policy" "itself" {
  for_each = var.servers

  iam_id      = ibm_iam_trusted_profile.this.iam_id
  roles       = ["Editor"]
  description = "snapferry: attaches volumes to ${each.key}"

  resources {
    service = "is"
    attributes = {
      instanceId = each.value.id
    }
  }
}

# Things are made in a resource group, which has to be seen for that.
resource "ibm_iam_trusted_profile_policy" "group" {
  iam_id      = ibm_iam_trusted_profile.this.iam_id
  roles       = ["Viewer"]
  description = "snapferry: makes things in the resource group"

  resources {
    resource_type = "resource-group"
    resource      = var.resource_group_id
  }
}

resource "ibm_iam_trusted_profile_policy" "bucket" {
  iam_id      = ibm_iam_trusted_profile.this.iam_id
  roles       = ["Writer"]
  description = "snapferry: uploads to bucket ${var.bucket_name}"

  resources {
    service              = "cloud-object-storage"
    resource_instance_id = var.storage_guid
    resource_type        = "bucket"
    resource             = var.bucket_name
  }
}

# A server that was there before its profile can only be linked. One that is made with it as its default is linked by that.
resource "ibm_iam_trusted_profile_link" "server" {
  for_each = { for name, server in var.servers : name => server if server.link }

  profile_id = ibm_iam_trusted_profile.this.profile_id
  cr_type    = "VSI"
  name       = each.key

  link {
    crn = each.value.crn
  }
}
