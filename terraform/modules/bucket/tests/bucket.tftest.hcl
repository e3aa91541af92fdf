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

run "tagged" {
  variables {
    resource_tags = ["cost:42"]
    access_tags   = ["env:prod"]
  }

  assert {
    condition     = ibm_resource_instance.storage.tags == toset(["cost:42"]) && keys(ibm_resource_tag.access) == ["bucket", "instance"]
    error_message = "The instance is billed by its tag, and both have the access tag."
  }

  assert {
    condition     = ibm_resource_tag.access["bucket"].resource_id == ibm_cos_bucket.images.crn && ibm_resource_tag.access["bucket"].tag_type == "access"
    error_message = "The bucket's tag is an access tag."
  }
}

run "tag_in_capitals" {
  command = plan

  variables {
    resource_tags = ["Cost"]
  }

  expect_failures = [var.resource_tags]
}

run "access_tag_without_a_value" {
  command = plan

  variables {
    access_tags = ["prod"]
  }

  expect_failures = [var.access_tags]
}
