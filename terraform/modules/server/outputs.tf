output "id" {
  description = "Id of the server."
  value       = ibm_is_instance.this.id
}

output "crn" {
  description = "CRN of the server."
  value       = ibm_is_instance.this.crn
}

output "ip" {
  description = "Its address in the subnet."
  value       = one(flatten(ibm_is_instance.this.primary_network_interface[*].primary_ip[*].address))
}

output "image_id" {
  description = "Id of the image that it was made from."
  value       = ibm_is_instance.this.image
}
