# Servers in the recovery region, each from the latest image of its name.

provider "ibm" {
  # The key is read from IC_API_KEY in the environment, and ends up in no file.
  region = var.region
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
  source = "../modules/network"

  name              = var.name
  zone              = var.zone
  cidr              = var.cidr
  resource_group_id = data.ibm_resource_group.this.id
  public_gateway    = var.public_gateway
  ssh_from          = var.ssh_from
}

# A newer image never replaces a server that was recovered: the module ignores changes of it.
module "server" {
  source   = "../modules/server"
  for_each = var.servers

  name              = each.key
  image_id          = data.ibm_is_image.latest[each.key].id
  profile           = each.value.profile
  vpc_id            = module.network.vpc_id
  zone              = var.zone
  subnet_id         = module.network.subnet_id
  security_group_id = module.network.security_group_id
  ip                = each.value.ip
  key_ids           = [data.ibm_is_ssh_key.this.id]
  resource_group_id = data.ibm_resource_group.this.id
  tags              = ["snapferry-recovered"]
}
