# Servers in the recovery region, each from the latest image of its name.

locals {
  tags = setunion(["snapferry-recovered"], var.resource_tags)
}

data "ibm_resource_group" "this" {
  name = var.resource_group
}

data "ibm_is_ssh_key" "this" {
  name = var.ssh_key
}

data "ibm_is_image" "latest" {
  for_each = var.servers

  name       = coalesce(each.value.image, "${each.key}-latest")
  visibility = "private"

  lifecycle {
    # The provider takes the first image of that name, in whatever state.
    postcondition {
      condition     = self.status == "available"
      error_message = "Image ${self.name} is ${self.status}, not available: see `snapferry images list`."
    }
  }
}

module "network" {
  source = "../network"

  name              = var.name
  zone              = var.zone
  cidr              = var.cidr
  subnet            = var.subnet
  resource_group_id = data.ibm_resource_group.this.id
  public_gateway    = var.public_gateway
  ssh_from          = var.ssh_from
  resource_tags     = local.tags
  access_tags       = var.access_tags
}

# A newer image never replaces a server that was recovered: the module ignores changes of it.
module "server" {
  source   = "../server"
  for_each = var.servers

  name              = each.key
  image_id          = data.ibm_is_image.latest[each.key].id
  profile           = each.value.profile
  vpc_id            = module.network.vpc_id
  zone              = module.network.zone
  subnet_id         = module.network.subnet_id
  security_group_id = module.network.security_group_id
  ip                = each.value.ip
  key_ids           = [data.ibm_is_ssh_key.this.id]
  resource_group_id = data.ibm_resource_group.this.id
  resource_tags     = local.tags
  access_tags       = var.access_tags
}
