output "servers" {
  description = "The recovered servers' addresses."
  value       = { for name, server in module.server : name => server.ip }
}

output "made_from" {
  description = "The images that they were made from, by id."
  value       = { for name, server in module.server : name => server.image_id }
}

output "latest" {
  description = "The images that they would be made from today, by id. To have one made anew: terraform apply -replace='module.this.module.server[\"NAME\"].ibm_is_instance.this'."
  value       = { for name, image in data.ibm_is_image.latest : name => image.id }
}

output "next" {
  description = "What to type next, from where ssh_from allows."
  value       = join("\n", [for name, server in module.server : "ssh root@${coalesce(server.ip, "ADDRESS")} hostname    # ${name}"])
}
