# Conversion servers in the source region, the bucket in the recovery region, and what they need to be allowed.

locals {
  servers = toset([for number in range(1, var.server_count + 1) : "${var.name}-${number}"])

  # All of it may be read by whoever may see the server: names and addresses, no secret. The queue's password is a credential of systemd's,
  # see the output `next`.
  config = merge({
    trusted_profile = "default"
    bucket          = module.bucket.name
    region          = module.bucket.region
    vpc_region      = var.region
    recovery_region = var.recovery_region
    resource_group  = data.ibm_resource_group.this.id
    level           = var.level
    }, var.private_endpoints == null ? {} : {
    vpc_endpoint = "private"
    iam_endpoint = "https://private.iam.cloud.ibm.com"
    }, local.redis == null ? {} : {
    redis         = local.redis_url
    redis_user    = "admin"
    redis_ca_file = "/etc/snapferry/redis-ca.pem"
  })

  tags = setunion(["snapferry"], var.resource_tags)

  redis     = one(data.ibm_database_connection.redis[*].rediss)
  redis_ca  = local.redis == null ? null : base64decode(local.redis[0].certificate[0].certificate_base64)
  redis_url = local.redis == null ? null : "rediss://${local.redis[0].hosts[0].hostname}:${local.redis[0].hosts[0].port}/0"
}

data "ibm_resource_group" "this" {
  name = var.resource_group
}

data "ibm_is_ssh_key" "this" {
  for_each = var.ssh_keys

  name = each.value
}

data "ibm_is_image" "this" {
  name = var.image
}

module "network" {
  source = "../network"

  name              = var.name
  zone              = var.zone
  cidr              = var.cidr
  subnet            = var.subnet
  resource_group_id = data.ibm_resource_group.this.id
  # For the package, and for IAM and the VPC API by their public addresses.
  public_gateway = var.private_endpoints == null
  ssh_from       = var.ssh_from
  resource_tags  = local.tags
  access_tags    = var.access_tags
}

module "private_endpoints" {
  source = "../private-endpoints"
  count  = var.private_endpoints == null ? 0 : 1

  name              = var.name
  region            = var.region
  recovery_region   = var.recovery_region
  vpc_id            = module.network.vpc_id
  subnet_id         = module.network.subnet_id
  security_group_id = module.network.security_group_id
  resource_group_id = data.ibm_resource_group.this.id
  services          = var.private_endpoints.services
  resource_tags     = local.tags
  access_tags       = var.access_tags
}

module "bucket" {
  source = "../bucket"

  name              = var.bucket
  region            = var.recovery_region
  resource_group_id = data.ibm_resource_group.this.id
  storage_class     = var.storage_class
  allow_export      = var.allow_export
  resource_tags     = local.tags
  access_tags       = var.access_tags
}

module "trusted_profile" {
  source = "../trusted-profile"

  name              = var.name
  resource_group_id = data.ibm_resource_group.this.id
  bucket_name       = module.bucket.name
  storage_guid      = module.bucket.instance_guid
  servers           = { for name, server in module.server : name => { id = server.id, crn = server.crn } }
}

module "server" {
  source   = "../server"
  for_each = local.servers

  name                   = each.key
  image_id               = data.ibm_is_image.this.id
  profile                = var.profile
  vpc_id                 = module.network.vpc_id
  zone                   = module.network.zone
  subnet_id              = module.network.subnet_id
  security_group_id      = module.network.security_group_id
  key_ids                = [for key in data.ibm_is_ssh_key.this : key.id]
  resource_group_id      = data.ibm_resource_group.this.id
  resource_tags          = local.tags
  access_tags            = var.access_tags
  total_volume_bandwidth = var.total_volume_bandwidth
  trusted_profile_id     = module.trusted_profile.profile_id
  metadata_protocol      = var.metadata_protocol

  user_data = templatefile("${path.module}/templates/cloud-init.yaml.tftpl", {
    package_url    = var.package_url
    package_sha256 = var.package_sha256
    config         = join("", [for key, value in local.config : "${key} = ${jsonencode(value)}\n"])
    redis_ca       = local.redis_ca
  })
}
