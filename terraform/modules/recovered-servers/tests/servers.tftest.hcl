# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {
  mock_data "ibm_is_image" {
    defaults = {
      status = "available"
    }
  }
}

variables {
  zone           = "us-east-1"
  resource_group = "default"
  ssh_key        = "admin"
  servers = {
    web01 = { ip = "10.10.0.11" }
    db01  = { profile = "bx2-4x16", image = "db01-20260102030405" }
  }
}

run "each_from_its_image" {
  assert {
    condition     = data.ibm_is_image.latest["web01"].name == "web01-latest"
    error_message = "The image is NAME-latest unless another is named."
  }

  assert {
    condition     = data.ibm_is_image.latest["db01"].name == "db01-20260102030405"
    error_message = "An image that is named is taken."
  }

  assert {
    condition     = output.servers["web01"] == "10.10.0.11"
    error_message = "A server keeps the address that it is given."
  }
}

run "image_that_is_not_available" {
  command = plan

  override_data {
    target = data.ibm_is_image.latest
    values = {
      status = "pending"
    }
  }

  expect_failures = [data.ibm_is_image.latest]
}

run "newer_image_replaces_no_server" {
  override_data {
    target = data.ibm_is_image.latest
    values = {
      id     = "another"
      status = "available"
    }
  }

  assert {
    condition     = output.latest["web01"] == "another"
    error_message = "The image has not changed: this proves nothing."
  }

  # The cloud can't change a server's image: a change of it in the plan is a replacement.
  assert {
    condition     = output.made_from == run.each_from_its_image.made_from && output.made_from["web01"] != "another"
    error_message = "A newer image replaced a server that was recovered."
  }
}

run "same_address_twice" {
  command = plan

  variables {
    servers = {
      web01 = { ip = "10.10.0.11" }
      web02 = { ip = "10.10.0.11" }
    }
  }

  expect_failures = [var.servers]
}

run "no_server" {
  command = plan

  variables {
    servers = {}
  }

  expect_failures = [var.servers]
}
