# Endpoint gateways in a subnet for what snapferry calls: so a server needs no way to the internet. Object Storage needs none: its direct
# endpoints are reached from every VPC.

locals {
  # IBM's names of the services' private addresses. Images are made in the recovery region, so its API is called, too.
  all = {
    iam          = "crn:v1:bluemix:public:iam-svcs:global:::endpoint:private.iam.cloud.ibm.com"
    tagging      = "crn:v1:bluemix:public:ghost-tags:global:::endpoint:tags.private.global-search-tagging.cloud.ibm.com"
    vpc          = "crn:v1:bluemix:public:is:${var.region}:::endpoint:${var.region}.private.iaas.cloud.ibm.com"
    vpc-recovery = "crn:v1:bluemix:public:is:${var.recovery_region}:::endpoint:${var.recovery_region}.private.iaas.cloud.ibm.com"
  }

  # Within one region the two APIs are one.
  wanted = var.region == var.recovery_region ? setsubtract(var.services, ["vpc-recovery"]) : var.services
}

resource "ibm_is_security_group" "this" {
  name           = "${var.name}-endpoints"
  vpc            = var.vpc_id
  resource_group = var.resource_group_id
  tags           = var.resource_tags
  access_tags    = var.access_tags
}

# Servers of this group get in, and nobody else.
resource "ibm_is_security_group_rule" "https" {
  group     = ibm_is_security_group.this.id
  direction = "inbound"
  remote    = var.security_group_id
  protocol  = "tcp"
  port_min  = 443
  port_max  = 443
}

resource "ibm_is_virtual_endpoint_gateway" "this" {
  for_each = local.wanted

  name            = "${var.name}-${each.value}"
  vpc             = var.vpc_id
  resource_group  = var.resource_group_id
  security_groups = [ibm_is_security_group.this.id]
  tags            = var.resource_tags
  access_tags     = var.access_tags

  target {
    crn           = local.all[each.value]
    resource_type = "provider_cloud_service"
  }

  ips {
    subnet = var.subnet_id
    name   = "${var.name}-${each.value}-ip"
  }
}
