# Servers in the recovery region, by the module of that name.

provider "ibm" {
  # The key is read from IC_API_KEY in the environment, and ends up in no file.
  region = var.region
}

module "this" {
  source = "../modules/recovered-servers"

  zone           = var.zone
  resource_group = var.resource_group
  name           = var.name
  ssh_key        = var.ssh_key
  ssh_from       = var.ssh_from
  cidr           = var.cidr
  subnet         = var.subnet
  public_gateway = var.public_gateway
  servers        = var.servers
  resource_tags  = var.resource_tags
  access_tags    = var.access_tags
}
