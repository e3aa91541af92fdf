# Servers to try snapferry on.

provider "ibm" {
  # The key is read from IC_API_KEY in the environment, and ends up in no file.
  region = var.region
}

locals {
  tags = setunion(["snapferry-test"], var.resource_tags)
}

data "ibm_resource_group" "this" {
  name = var.resource_group
}

data "ibm_is_ssh_key" "this" {
  name = var.ssh_key
}

data "ibm_is_image" "this" {
  for_each = toset([for server in var.servers : server.image])

  name = each.value
}

module "network" {
  source = "../modules/network"

  name              = var.name
  zone              = var.zone
  cidr              = var.cidr
  resource_group_id = data.ibm_resource_group.this.id
  ssh_from          = var.ssh_from
  resource_tags     = local.tags
  access_tags       = var.access_tags
}

module "server" {
  source   = "../modules/server"
  for_each = var.servers

  name              = each.key
  image_id          = data.ibm_is_image.this[each.value.image].id
  profile           = each.value.profile
  vpc_id            = module.network.vpc_id
  zone              = var.zone
  subnet_id         = module.network.subnet_id
  security_group_id = module.network.security_group_id
  ip                = each.value.ip
  key_ids           = [data.ibm_is_ssh_key.this.id]
  resource_group_id = data.ibm_resource_group.this.id
  resource_tags     = local.tags
  access_tags       = var.access_tags
}
