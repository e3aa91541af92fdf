# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {}

variables {
  name              = "n"
  region            = "us-south"
  recovery_region   = "us-east"
  vpc_id            = "vpc"
  subnet_id         = "subnet"
  security_group_id = "servers"
  resource_group_id = "group"
  resource_tags     = ["team:storage"]
}

run "one_for_each_service" {
  command = plan

  assert {
    condition     = keys(ibm_is_virtual_endpoint_gateway.this) == ["iam", "tagging", "vpc", "vpc-recovery"]
    error_message = "Whatever snapferry calls has a gateway."
  }

  assert {
    condition     = ibm_is_virtual_endpoint_gateway.this["vpc-recovery"].target[0].crn == "crn:v1:bluemix:public:is:us-east:::endpoint:us-east.private.iaas.cloud.ibm.com"
    error_message = "Images are made by the recovery region's API."
  }

  assert {
    condition     = ibm_is_virtual_endpoint_gateway.this["iam"].ips[0].subnet == "subnet" && ibm_is_virtual_endpoint_gateway.this["iam"].tags == toset(["team:storage"])
    error_message = "A gateway has an address in the subnet, and the tags."
  }

  assert {
    condition     = ibm_is_security_group_rule.https.remote == "servers" && ibm_is_security_group_rule.https.port_max == 443
    error_message = "Servers reach the gateways, by HTTPS alone."
  }
}

run "one_api_within_a_region" {
  command = plan

  variables {
    recovery_region = "us-south"
  }

  assert {
    condition     = keys(ibm_is_virtual_endpoint_gateway.this) == ["iam", "tagging", "vpc"]
    error_message = "A VPC may have one gateway for each service."
  }
}

run "only_those_that_are_missing" {
  command = plan

  variables {
    services = ["vpc"]
  }

  assert {
    condition     = keys(ibm_is_virtual_endpoint_gateway.this) == ["vpc"]
    error_message = "A gateway that the VPC has already is not made again."
  }
}

run "service_that_is_none" {
  command = plan

  variables {
    services = ["cos"]
  }

  expect_failures = [var.services]
}
