# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {
  mock_data "ibm_database_connection" {
    defaults = {
      rediss = [{
        authentication     = []
        browser_accessible = false
        certificate        = [{ certificate_base64 = "Q0VSVElGSUNBVEU=", name = "ca" }]
        composed           = []
        database           = 0
        hosts              = [{ hostname = "queue.example.com", port = 30123 }]
        path               = "/0"
        query_options      = {}
        scheme             = "rediss"
        ssl                = true
        type               = "uri"
      }]
    }
  }
}

variables {
  region          = "us-south"
  zone            = "us-south-1"
  recovery_region = "us-east"
  resource_group  = "default"
  bucket          = "images-us-east"
  image           = "ibm-debian-12-11-minimal-amd64-1"
  ssh_keys        = ["admin"]
  package_url     = "https://example.com/snapferry.deb"
  package_sha256  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
}

run "one_server_and_no_queue" {
  assert {
    condition     = keys(output.servers) == ["snapferry-1"] && output.redis == null
    error_message = "One server and no Redis are the default."
  }

  assert {
    condition     = !strcontains(output.next, "ibmcloud cdb")
    error_message = "Without a queue there is no password to set."
  }
}

run "several_servers_and_a_queue" {
  variables {
    server_count = 3
    redis        = {}
  }

  assert {
    condition     = keys(output.servers) == ["snapferry-1", "snapferry-2", "snapferry-3"]
    error_message = "Servers are numbered from 1."
  }

  assert {
    condition     = output.redis == "rediss://queue.example.com:30123/0"
    error_message = "The queue's address has no password in it."
  }

  assert {
    condition     = local.redis_ca == "CERTIFICATE"
    error_message = "The CA is decoded before it becomes a file."
  }

  assert {
    condition     = local.config.redis == output.redis && local.config.redis_user == "admin" && local.config.redis_ca_file == "/etc/snapferry/redis-ca.pem"
    error_message = "Every command on a server knows the queue, not its worker alone."
  }
}

run "user_data_is_yaml_whatever_is_in_it" {
  module {
    source = "./tests/whole"
  }

  assert {
    condition     = startswith(output.user_data, "#cloud-config\n") && can(yamldecode(output.user_data))
    error_message = "User data is no YAML that cloud-init reads."
  }

  assert {
    condition     = yamldecode(output.user_data).write_files[0].content == "bucket = \"b\"\nlevel = \"fast\"\n"
    error_message = "The configuration is not what was given."
  }

  assert {
    condition     = yamldecode(output.user_data).runcmd[0] == ["/usr/local/sbin/install-snapferry", "https://example.com/'\"; reboot", "ab"]
    error_message = "An address has to stay one word, whatever is in it."
  }

  assert {
    condition     = [for file in yamldecode(output.user_data_with_ca).write_files : file.content if strcontains(file.path, "/etc/snapferry/")] == ["bucket = \"b\"\nlevel = \"fast\"\n", "-----BEGIN\nCA\n"]
    error_message = "The CA has to come as a file of its own."
  }
}

run "nobody_gets_in_from_everywhere" {
  command = plan

  variables {
    ssh_from = ["0.0.0.0/0"]
  }

  expect_failures = [var.ssh_from]
}

run "package_of_an_unknown_sum" {
  command = plan

  variables {
    package_sha256 = "abc"
  }

  expect_failures = [var.package_sha256]
}

run "package_without_tls" {
  command = plan

  variables {
    package_url = "http://example.com/snapferry.deb"
  }

  expect_failures = [var.package_url]
}

run "too_little_for_volumes" {
  command = plan

  variables {
    total_volume_bandwidth = 400
  }

  expect_failures = [var.total_volume_bandwidth]
}

run "metadata_service_is_never_off" {
  command = plan

  variables {
    metadata_protocol = "ftp"
  }

  expect_failures = [var.metadata_protocol]
}

run "public_by_default" {
  command = plan

  assert {
    condition     = length(module.private_endpoints) == 0 && !contains(keys(local.config), "vpc_endpoint")
    error_message = "Public addresses are the default."
  }
}

run "private_endpoints_and_no_way_to_the_internet" {
  variables {
    private_endpoints = { services = ["iam", "vpc"] }
  }

  assert {
    condition     = keys(module.private_endpoints[0].services) == ["iam", "vpc"]
    error_message = "Gateways are made for the services that are asked for."
  }

  assert {
    condition     = local.config.vpc_endpoint == "private" && local.config.iam_endpoint == "https://private.iam.cloud.ibm.com"
    error_message = "The servers have to call the private addresses."
  }
}

run "subnet_that_is_there" {
  override_data {
    target = module.network.data.ibm_is_subnet.given
    values = {
      id   = "0717-there"
      vpc  = "r006-there"
      zone = "us-south-2"
    }
  }

  variables {
    zone   = null
    subnet = { id = "0717-there" }
  }

  assert {
    condition     = output.vpc_id == "r006-there"
    error_message = "The servers are in the subnet's own VPC."
  }
}

run "tags_beside_its_own" {
  variables {
    resource_tags = ["team:storage"]
    access_tags   = ["env:prod"]
    redis         = {}
  }

  assert {
    condition     = local.tags == toset(["snapferry", "team:storage"]) && ibm_database.redis[0].tags == local.tags
    error_message = "`snapferry` stands on everything, and so do the tags that are given."
  }

  assert {
    condition     = ibm_resource_tag.redis[0].tag_type == "access" && ibm_resource_tag.redis[0].tags == toset(["env:prod"])
    error_message = "A database takes access tags by a resource of their own alone."
  }
}
