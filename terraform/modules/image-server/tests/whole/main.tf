# The user data by itself, from values that would break out of YAML if they could.

locals {
  template = "${path.module}/../../templates/cloud-init.yaml.tftpl"
  given = {
    package_url    = "https://example.com/'\"; reboot"
    package_sha256 = "ab"
    config         = "bucket = \"b\"\nlevel = \"fast\"\n"
  }
}

output "user_data" {
  description = "Without a CA."
  value       = templatefile(local.template, merge(local.given, { redis_ca = null }))
}

output "user_data_with_ca" {
  description = "With one."
  value       = templatefile(local.template, merge(local.given, { redis_ca = "-----BEGIN\nCA\n" }))
}
