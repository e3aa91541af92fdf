# The queue, for those who have none. Its password is set by hand once it is there: so it is neither in the state nor in user data.

resource "ibm_database" "redis" {
  count = var.redis == null ? 0 : 1

  name              = "${var.name}-queue"
  service           = "databases-for-redis"
  plan              = "standard"
  location          = var.region
  resource_group_id = data.ibm_resource_group.this.id
  service_endpoints = "private"
  tags              = local.tags

  group {
    group_id = "member"

    memory {
      allocation_mb = var.redis.memory_mb
    }
  }

  timeouts {
    create = "2h"
  }

  lifecycle {
    # Set with `ibmcloud cdb`, see the output `next`.
    ignore_changes = [adminpassword]
  }
}

resource "ibm_resource_tag" "redis" {
  count = var.redis == null || length(var.access_tags) == 0 ? 0 : 1

  resource_id = ibm_database.redis[0].resource_crn
  tag_type    = "access"
  tags        = var.access_tags
}

data "ibm_database_connection" "redis" {
  count = var.redis == null ? 0 : 1

  deployment_id = ibm_database.redis[0].id
  endpoint_type = "private"
  user_id       = "admin"
  user_type     = "database"
}
