# The version of the provider that this folder is checked with. `terraform init` adds the checksums of your platform.

provider "registry.terraform.io/ibm-cloud/ibm" {
  version     = "2.5.0"
  constraints = ">= 2.5.0, < 3.0.0"
}
