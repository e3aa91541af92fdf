# Conversion servers, by the module of that name.

provider "ibm" {
  # The key is read from IC_API_KEY in the environment, and ends up in no file.
  region = var.region
}

module "this" {
  source = "../modules/image-server"

  region                 = var.region
  zone                   = var.zone
  recovery_region        = var.recovery_region
  resource_group         = var.resource_group
  name                   = var.name
  bucket                 = var.bucket
  storage_class          = var.storage_class
  allow_export           = var.allow_export
  server_count           = var.server_count
  profile                = var.profile
  total_volume_bandwidth = var.total_volume_bandwidth
  image                  = var.image
  ssh_keys               = var.ssh_keys
  ssh_from               = var.ssh_from
  cidr                   = var.cidr
  subnet                 = var.subnet
  private_endpoints      = var.private_endpoints
  metadata_protocol      = var.metadata_protocol
  level                  = var.level
  package_url            = var.package_url
  package_sha256         = var.package_sha256
  redis                  = var.redis
  resource_tags          = var.resource_tags
  access_tags            = var.access_tags
}
