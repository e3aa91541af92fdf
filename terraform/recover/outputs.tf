output "servers" {
  description = "The recovered servers' addresses."
  value       = module.this.servers
}

output "made_from" {
  description = "The images that they were made from, by id."
  value       = module.this.made_from
}

output "latest" {
  description = "The images that they would be made from today, by id. To have one made anew: terraform apply -replace='module.this.module.server[\"NAME\"].ibm_is_instance.this'."
  value       = module.this.latest
}

output "next" {
  description = "What to type next, from where ssh_from allows."
  value       = module.this.next
}
