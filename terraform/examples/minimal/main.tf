# For a server that you have already: a bucket in the recovery region, and a trusted profile that the server may take on.

provider "ibm" {
  # The key is read from IC_API_KEY in the environment, and ends up in no file.
  region = var.region
}

data "ibm_resource_group" "this" {
  name = var.resource_group
}

data "ibm_is_instance" "this" {
  name = var.server
}

module "bucket" {
  source = "../../modules/bucket"

  name              = var.bucket
  region            = var.recovery_region
  resource_group_id = data.ibm_resource_group.this.id
  resource_tags     = var.resource_tags
  access_tags       = var.access_tags
}

module "trusted_profile" {
  source = "../../modules/trusted-profile"

  name              = "snapferry-${var.server}"
  resource_group_id = data.ibm_resource_group.this.id
  bucket_name       = module.bucket.name
  storage_guid      = module.bucket.instance_guid

  servers = {
    (var.server) = {
      id   = data.ibm_is_instance.this.id
      crn  = data.ibm_is_instance.this.crn
      link = true
    }
  }
}
