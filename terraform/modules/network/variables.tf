variable "name" {
  description = "Name of the VPC; what is in it has names that begin with it."
  type        = string
}

variable "zone" {
  description = "Zone of the subnet, as in us-south-1."
  type        = string
}

variable "cidr" {
  description = "IPv4 block of the address prefix and of the subnet, which takes all of it."
  type        = string
}

variable "resource_group_id" {
  description = "Resource group that everything is made in."
  type        = string
}

variable "public_gateway" {
  description = "Whether servers reach the internet. They are not reached from there either way."
  type        = bool
  default     = false
}

variable "ssh_from" {
  description = "Blocks of addresses that may reach port 22."
  type        = set(string)
  default     = []
}
