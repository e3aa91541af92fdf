output "vpc_id" {
  description = "Id of the VPC."
  value       = local.vpc_id
}

output "subnet_id" {
  description = "Id of the subnet, which is there once its address prefix is."
  value       = local.subnet_id
}

output "zone" {
  description = "Zone of the subnet."
  value       = local.zone
}

output "security_group_id" {
  description = "Id of the security group."
  value       = ibm_is_security_group.this.id
}
