# Two conversion servers without a way to the internet, in a VPC that is there already, with a queue; the bucket and, when they are wanted,
# recovered servers in the recovery region. Everything has the tags by which the account bills and grants rights.

provider "ibm" {
  # The key is read from IC_API_KEY in the environment, and ends up in no file.
  region = var.region
}

provider "ibm" {
  alias  = "recovery"
  region = var.recovery_region
}

data "ibm_is_subnet" "there" {
  name = var.subnet
}

module "image_server" {
  source = "../../modules/image-server"

  region            = var.region
  recovery_region   = var.recovery_region
  resource_group    = var.resource_group
  name              = var.name
  server_count      = 2
  bucket            = var.bucket
  image             = var.image
  ssh_keys          = [var.ssh_key]
  ssh_from          = [data.ibm_is_subnet.there.ipv4_cidr_block]
  subnet            = { id = data.ibm_is_subnet.there.id }
  private_endpoints = {}
  package_url       = var.package_url
  package_sha256    = var.package_sha256
  redis             = { memory_mb = 4096 }
  resource_tags     = var.resource_tags
  access_tags       = var.access_tags
}

# None until the source region is lost, or a drill is held.
module "recovered" {
  source = "../../modules/recovered-servers"
  count  = length(var.recovered) == 0 ? 0 : 1

  providers = {
    ibm = ibm.recovery
  }

  zone           = "${var.recovery_region}-1"
  resource_group = var.resource_group
  ssh_key        = var.ssh_key
  servers        = var.recovered
  resource_tags  = var.resource_tags
  access_tags    = var.access_tags
}
