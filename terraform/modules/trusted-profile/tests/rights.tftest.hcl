# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {}

variables {
  name              = "snapferry"
  resource_group_id = "group"
  bucket_name       = "images"
  storage_guid      = "guid"
  servers = {
    one = { id = "id-1", crn = "crn-1" }
    two = { id = "id-2", crn = "crn-2", link = true }
  }
}

run "no_more_than_it_needs" {
  command = plan

  assert {
    condition     = one(ibm_iam_trusted_profile_policy.sources.roles) == "Viewer"
    error_message = "Servers that are carried are never changed."
  }

  assert {
    condition     = toset([for policy in ibm_iam_trusted_profile_policy.itself : policy.resources[0].attributes["instanceId"]]) == toset(["id-1", "id-2"])
    error_message = "Conversion servers are edited, one by one, and no other server."
  }

  assert {
    condition     = ibm_iam_trusted_profile_policy.bucket.resources[0].resource == "images" && one(ibm_iam_trusted_profile_policy.bucket.roles) == "Writer"
    error_message = "One bucket is written to."
  }

  assert {
    condition     = keys(ibm_iam_trusted_profile_link.server) == ["two"]
    error_message = "Only a server that was not made with the profile is linked."
  }
}
