# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {}

variables {
  name              = "n"
  zone              = "us-south-1"
  cidr              = "10.0.0.0/28"
  resource_group_id = "group"
}

run "closed_by_default" {
  command = plan

  assert {
    condition     = length(ibm_is_security_group_rule.ssh) == 0 && length(ibm_is_public_gateway.this) == 0
    error_message = "Nobody gets in, and nothing gets to the internet, unless it is asked for."
  }

  assert {
    condition     = ibm_is_security_group_rule.out.direction == "outbound"
    error_message = "The one rule is for what leaves."
  }
}

run "ssh_from_where_it_is_allowed" {
  command = plan

  variables {
    ssh_from       = ["192.0.2.0/24"]
    public_gateway = true
  }

  assert {
    condition = (
      ibm_is_security_group_rule.ssh["192.0.2.0/24"].port_min == 22
      && ibm_is_security_group_rule.ssh["192.0.2.0/24"].port_max == 22
      && ibm_is_security_group_rule.ssh["192.0.2.0/24"].protocol == "tcp"
    )
    error_message = "Port 22 and no other."
  }
}

run "own_network_is_tagged" {
  command = plan

  variables {
    resource_tags  = ["team:storage"]
    access_tags    = ["env:prod"]
    public_gateway = true
  }

  assert {
    condition = alltrue([
      for made in [ibm_is_vpc.this[0], ibm_is_subnet.this[0], ibm_is_public_gateway.this[0], ibm_is_security_group.this] :
      made.tags == toset(["team:storage"]) && made.access_tags == toset(["env:prod"])
    ])
    error_message = "Whatever is billed or guarded has the tags."
  }
}

run "subnet_that_is_there" {
  command = plan

  override_data {
    target = data.ibm_is_subnet.given
    values = {
      id   = "0717-there"
      vpc  = "r006-there"
      zone = "us-south-2"
    }
  }

  variables {
    zone           = null
    cidr           = null
    subnet         = { id = "0717-there" }
    public_gateway = true
  }

  assert {
    condition     = length(ibm_is_vpc.this) + length(ibm_is_subnet.this) + length(ibm_is_vpc_address_prefix.this) + length(ibm_is_public_gateway.this) == 0
    error_message = "Nothing of a network is made where there is one."
  }

  assert {
    condition     = output.vpc_id == "r006-there" && output.subnet_id == "0717-there" && output.zone == "us-south-2" && ibm_is_security_group.this.vpc == "r006-there"
    error_message = "VPC and zone are the subnet's own."
  }
}

run "subnet_of_another_zone" {
  command = plan

  override_data {
    target = data.ibm_is_subnet.given
    values = {
      id   = "0717-there"
      vpc  = "r006-there"
      zone = "us-south-2"
    }
  }

  variables {
    subnet = { id = "0717-there" }
  }

  expect_failures = [data.ibm_is_subnet.given]
}

run "neither_subnet_nor_zone" {
  command = plan

  variables {
    zone = null
  }

  expect_failures = [ibm_is_vpc.this]
}
