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
