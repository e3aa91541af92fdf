# A subnet and a security group that lets servers out and nobody in: in a VPC of its own, or in one that is there already.

locals {
  is_made = var.subnet == null

  vpc_id    = local.is_made ? one(ibm_is_vpc.this[*].id) : one(data.ibm_is_subnet.given[*].vpc)
  subnet_id = local.is_made ? one(ibm_is_subnet.this[*].id) : one(data.ibm_is_subnet.given[*].id)
  zone      = local.is_made ? var.zone : one(data.ibm_is_subnet.given[*].zone)
}

data "ibm_is_subnet" "given" {
  count = local.is_made ? 0 : 1

  identifier = var.subnet.id

  lifecycle {
    postcondition {
      condition     = var.zone == null || self.zone == var.zone
      error_message = "Subnet ${self.name} is in zone ${self.zone}: leave `zone` out, or name that one."
    }
  }
}

resource "ibm_is_vpc" "this" {
  count = local.is_made ? 1 : 0

  name                      = var.name
  resource_group            = var.resource_group_id
  address_prefix_management = "manual"
  tags                      = var.resource_tags
  access_tags               = var.access_tags

  lifecycle {
    precondition {
      condition     = var.zone != null && var.cidr != null
      error_message = "Give `zone` and `cidr` for a network of its own, or `subnet` for one that is there."
    }
  }
}

resource "ibm_is_vpc_address_prefix" "this" {
  count = local.is_made ? 1 : 0

  name = "${var.name}-prefix"
  vpc  = local.vpc_id
  zone = var.zone
  cidr = var.cidr
}

resource "ibm_is_public_gateway" "this" {
  count = local.is_made && var.public_gateway ? 1 : 0

  name           = "${var.name}-gateway"
  vpc            = local.vpc_id
  zone           = var.zone
  resource_group = var.resource_group_id
  tags           = var.resource_tags
  access_tags    = var.access_tags
}

resource "ibm_is_subnet" "this" {
  count = local.is_made ? 1 : 0

  name            = "${var.name}-subnet"
  vpc             = local.vpc_id
  zone            = var.zone
  ipv4_cidr_block = var.cidr
  public_gateway  = one(ibm_is_public_gateway.this[*].id)
  resource_group  = var.resource_group_id
  tags            = var.resource_tags
  access_tags     = var.access_tags

  # The block has to lie in a prefix that is there, and nothing above refers to it.
  depends_on = [ibm_is_vpc_address_prefix.this]
}

resource "ibm_is_security_group" "this" {
  name           = "${var.name}-group"
  vpc            = local.vpc_id
  resource_group = var.resource_group_id
  tags           = var.resource_tags
  access_tags    = var.access_tags
}

# A group without rules lets nothing out either. Without `protocol` the rule is for all of them.
resource "ibm_is_security_group_rule" "out" {
  group     = ibm_is_security_group.this.id
  direction = "outbound"
  remote    = "0.0.0.0/0"
}

resource "ibm_is_security_group_rule" "ssh" {
  for_each = var.ssh_from

  group     = ibm_is_security_group.this.id
  direction = "inbound"
  remote    = each.value
  protocol  = "tcp"
  port_min  = 22
  port_max  = 22
}
