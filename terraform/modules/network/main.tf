# A VPC with one subnet in one zone, and a security group that lets servers out and nobody in.

resource "ibm_is_vpc" "this" {
  name                      = var.name
  resource_group            = var.resource_group_id
  address_prefix_management = "manual"
}

resource "ibm_is_vpc_address_prefix" "this" {
  name = "${var.name}-prefix"
  vpc  = ibm_is_vpc.this.id
  zone = var.zone
  cidr = var.cidr
}

resource "ibm_is_public_gateway" "this" {
  count = var.public_gateway ? 1 : 0

  name           = "${var.name}-gateway"
  vpc            = ibm_is_vpc.this.id
  zone           = var.zone
  resource_group = var.resource_group_id
}

resource "ibm_is_subnet" "this" {
  name            = "${var.name}-subnet"
  vpc             = ibm_is_vpc.this.id
  zone            = var.zone
  ipv4_cidr_block = var.cidr
  public_gateway  = one(ibm_is_public_gateway.this[*].id)
  resource_group  = var.resource_group_id

  # The block has to lie in a prefix that is there, and nothing above refers to it.
  depends_on = [ibm_is_vpc_address_prefix.this]
}

resource "ibm_is_security_group" "this" {
  name           = "${var.name}-group"
  vpc            = ibm_is_vpc.this.id
  resource_group = var.resource_group_id
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
