output "profile_id" {
  description = "Id of the profile, for servers that have it as their default and for `--trusted-profile`."
  value       = ibm_iam_trusted_profile.this.profile_id
}
