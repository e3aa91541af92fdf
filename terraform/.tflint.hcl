# Rules of tflint for all folders, see scripts/check-terraform-provider.sh. It has no rules for IBM's provider: those of Terraform alone.

plugin "terraform" {
  enabled = true
  preset  = "all"
}

# Queue, network and tests have files of their own, and a folder of three resources needs no more than one.
rule "terraform_standard_module_structure" {
  enabled = false
}
