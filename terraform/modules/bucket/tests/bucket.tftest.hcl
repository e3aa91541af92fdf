# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {}

variables {
  name              = "images-us-east"
  region            = "us-east"
  resource_group_id = "group"
}

run "kept_and_swept" {
  assert {
    condition     = ibm_cos_bucket.images.force_delete == false
    error_message = "A destroy must not empty the bucket."
  }

  assert {
    condition     = ibm_cos_bucket_lifecycle_configuration.images.lifecycle_rule[0].abort_incomplete_multipart_upload[0].days_after_initiation == 3
    error_message = "Uploads that nobody completed have to go."
  }

  assert {
    condition     = length(ibm_cos_bucket_lifecycle_configuration.images.lifecycle_rule[0].expiration) == 0
    error_message = "Images are pruned by snapferry, never by age alone."
  }

  assert {
    condition     = one(ibm_iam_authorization_policy.images.roles) == "Reader" && ibm_iam_authorization_policy.images.target_resource_instance_id == ibm_resource_instance.storage.guid
    error_message = "The image service reads this one storage, and no more."
  }
}

run "export" {
  command = plan

  variables {
    allow_export = true
  }

  assert {
    condition     = one(ibm_iam_authorization_policy.images.roles) == "Writer"
    error_message = "Exporting writes."
  }
}

run "storage_class_that_is_none" {
  command = plan

  variables {
    storage_class = "glacier"
  }

  expect_failures = [var.storage_class]
}

run "name_in_capitals" {
  command = plan

  variables {
    name = "Images"
  }

  expect_failures = [var.name]
}
