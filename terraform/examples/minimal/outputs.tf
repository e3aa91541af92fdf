output "next" {
  description = "What to type next, on the server."
  value       = "snapferry doctor --trusted-profile ${module.trusted_profile.profile_id} --bucket ${module.bucket.name} --to ${var.recovery_region}"
}
