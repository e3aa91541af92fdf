output "services" {
  description = "Services that have a gateway, with the addresses that they have in the subnet."
  value       = { for name, gateway in ibm_is_virtual_endpoint_gateway.this : name => gateway.ips[*].address }
}
