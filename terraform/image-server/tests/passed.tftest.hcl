# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {}

run "everything_is_passed_on" {
  variables {
    region          = "us-south"
    zone            = "us-south-1"
    recovery_region = "us-east"
    resource_group  = "default"
    name            = "carry"
    server_count    = 2
    bucket          = "images-us-east"
    image           = "ibm-debian-12-11-minimal-amd64-1"
    ssh_keys        = ["admin"]
    package_url     = "https://example.com/snapferry.deb"
    package_sha256  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  }

  assert {
    condition     = keys(output.servers) == ["carry-1", "carry-2"] && output.bucket == "images-us-east"
    error_message = "The module's outputs are the root's."
  }
}
