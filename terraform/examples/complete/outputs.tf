output "conversion_servers" {
  description = "The conversion servers' addresses in their subnet."
  value       = module.image_server.servers
}

output "recovered_servers" {
  description = "The recovered servers' addresses."
  value       = merge({}, module.recovered[*].servers...)
}

output "next" {
  description = "What to type next."
  value       = module.image_server.next
}
