# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {
  mock_resource "ibm_iam_trusted_profile" {
    defaults = {
      profile_id = "Profile-1"
    }
  }
}

run "profile_for_a_server" {
  variables {
    region          = "us-south"
    recovery_region = "us-east"
    resource_group  = "default"
    server          = "converter"
    bucket          = "images-us-east"
  }

  assert {
    condition     = output.next == "snapferry doctor --trusted-profile Profile-1 --bucket images-us-east --to us-east"
    error_message = "The next command is not what it has to be."
  }
}
