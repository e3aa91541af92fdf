# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {}

variables {
  region         = "us-south"
  zone           = "us-south-1"
  resource_group = "default"
  ssh_key        = "admin"
}

run "eight_servers" {
  assert {
    condition     = length(output.servers) == 8
    error_message = "There are eight sample servers."
  }

  assert {
    condition     = startswith(output.next, "snapferry replicate app01\n")
    error_message = "Each server has its line."
  }
}

run "name_without_room_for_latest" {
  command = plan

  variables {
    servers = { "a23456789-123456789-123456789-123456789-123456789-1234567" = {} }
  }

  expect_failures = [var.servers]
}
