# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {
  mock_data "ibm_is_image" {
    defaults = {
      status = "available"
    }
  }
}

run "everything_is_passed_on" {
  variables {
    region         = "us-east"
    zone           = "us-east-1"
    resource_group = "default"
    ssh_key        = "admin"
    servers        = { web01 = { ip = "10.10.0.11" } }
  }

  assert {
    condition     = output.servers == { web01 = "10.10.0.11" }
    error_message = "The module's outputs are the root's."
  }
}
