output "vpc_id" {
  description = "Id of the VPC."
  value       = ibm_is_vpc.this.id
}

output "subnet_id" {
  description = "Id of the subnet, which is there once its address prefix is."
  value       = ibm_is_subnet.this.id
}

output "security_group_id" {
  description = "Id of the security group."
  value       = ibm_is_security_group.this.id
}
