output "servers" {
  description = "The conversion servers' addresses in their subnet."
  value       = module.this.servers
}

output "bucket" {
  description = "The bucket for images."
  value       = module.this.bucket
}

output "trusted_profile" {
  description = "Id of the trusted profile, which is the servers' default."
  value       = module.this.trusted_profile
}

output "redis" {
  description = "Where the queue is, without the password; null where none was made."
  value       = module.this.redis
}

output "next" {
  description = "What to type next."
  value       = module.this.next
}

output "vpc_id" {
  description = "VPC that the servers are in."
  value       = module.this.vpc_id
}

output "security_group_id" {
  description = "Security group of the servers, for rules of your own."
  value       = module.this.security_group_id
}
