output "servers" {
  description = "The servers' addresses."
  value       = { for name, server in module.server : name => server.ip }
}

output "next" {
  description = "What to type next, on a conversion server."
  value       = join("\n", [for name in keys(module.server) : "snapferry replicate ${name}"])
}
