# One server in a subnet.

resource "ibm_is_instance" "this" {
  name                              = var.name
  image                             = var.image_id
  profile                           = var.profile
  vpc                               = var.vpc_id
  zone                              = var.zone
  keys                              = var.key_ids
  resource_group                    = var.resource_group_id
  user_data                         = var.user_data
  tags                              = var.resource_tags
  access_tags                       = var.access_tags
  total_volume_bandwidth            = var.total_volume_bandwidth
  default_trusted_profile_target    = var.trusted_profile_id
  default_trusted_profile_auto_link = var.trusted_profile_id == null ? null : true

  primary_network_interface {
    subnet          = var.subnet_id
    security_groups = [var.security_group_id]

    dynamic "primary_ip" {
      for_each = var.ip == null ? [] : [var.ip]

      content {
        address = primary_ip.value
      }
    }
  }

  # Off unless it is switched on: without it there are no tokens for the profile. One hop: no container gets at it.
  metadata_service {
    enabled            = var.metadata_protocol != null
    protocol           = coalesce(var.metadata_protocol, "http")
    response_hop_limit = 1
  }

  lifecycle {
    # An image by the same name is another one tomorrow, and a server can't change its image: without this line the next apply would
    # replace a server that is in use.
    ignore_changes = [image]
  }
}
