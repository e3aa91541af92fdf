output "servers" {
  description = "The conversion servers' addresses in their subnet."
  value       = { for name, server in module.server : name => server.ip }
}

output "bucket" {
  description = "The bucket for images."
  value       = module.bucket.name
}

output "trusted_profile" {
  description = "Id of the trusted profile, which is the servers' default."
  value       = module.trusted_profile.profile_id
}

output "redis" {
  description = "Where the queue is, without the password; null where none was made."
  value       = local.redis_url
}

output "next" {
  description = "What to type next."
  value = join("\n", concat(
    [
      "# On a server (ssh root@ADDRESS, from where ssh_from allows): is everything as it has to be?",
      "snapferry doctor --bucket ${module.bucket.name} --to ${var.recovery_region}",
      "# Carry one server",
      "snapferry replicate SERVER --dry-run",
      "snapferry replicate SERVER",
    ],
    local.redis_url == null ? [] : [
      "# Set the queue's password, here, and give it to each server: it is in no state and in no user data",
      "ibmcloud cdb deployment-user-password ${one(ibm_database.redis[*].id)} admin",
      "install -d -m 700 /etc/credstore && install -m 600 /dev/stdin /etc/credstore/snapferry.redis-password",
      "systemctl restart snapferry-worker",
    ],
  ))
}

output "vpc_id" {
  description = "VPC that the servers are in."
  value       = module.network.vpc_id
}

output "security_group_id" {
  description = "Security group of the servers, for rules of your own."
  value       = module.network.security_group_id
}
