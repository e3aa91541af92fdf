# Needs Terraform 1.7 or later, and no account: nothing is made.

mock_provider "ibm" {
  mock_data "ibm_is_subnet" {
    defaults = {
      id              = "0717-there"
      vpc             = "r006-there"
      zone            = "us-south-1"
      ipv4_cidr_block = "10.20.0.0/24"
    }
  }

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

mock_provider "ibm" {
  alias = "recovery"

  mock_data "ibm_is_image" {
    defaults = {
      status = "available"
    }
  }
}

variables {
  region          = "us-south"
  recovery_region = "us-east"
  resource_group  = "default"
  subnet          = "inside"
  bucket          = "images-us-east"
  image           = "ibm-debian-12-11-minimal-amd64-1"
  ssh_key         = "admin"
  package_url     = "https://example.com/snapferry.deb"
  package_sha256  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
}

run "two_servers_and_nothing_recovered" {
  assert {
    condition     = length(output.conversion_servers) == 2 && output.recovered_servers == {}
    error_message = "Servers are recovered when they are asked for."
  }
}

run "recovered" {
  variables {
    recovered = { web01 = { ip = "10.10.0.11" } }
  }

  assert {
    condition     = output.recovered_servers == { web01 = "10.10.0.11" }
    error_message = "Each has the address that it is given."
  }
}
