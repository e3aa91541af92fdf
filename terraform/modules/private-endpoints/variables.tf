variable "name" {
  description = "What the gateways' names begin with."
  type        = string
}

variable "region" {
  description = "Region of the subnet, whose VPC API is called."
  type        = string
}

variable "recovery_region" {
  description = "Region that images are imported to, whose VPC API is called too."
  type        = string
}

variable "vpc_id" {
  description = "VPC of the subnet."
  type        = string
}

variable "subnet_id" {
  description = "Subnet in which each gateway gets an address."
  type        = string
}

variable "security_group_id" {
  description = "Security group of the servers, which may reach the gateways."
  type        = string
}

variable "resource_group_id" {
  description = "Resource group that everything is made in."
  type        = string
}

variable "services" {
  description = "Services that get a gateway. A VPC may have one for each: leave out those that yours has."
  type        = set(string)
  default     = ["iam", "tagging", "vpc", "vpc-recovery"]

  validation {
    condition     = length(setsubtract(var.services, ["iam", "tagging", "vpc", "vpc-recovery"])) == 0
    error_message = "Services are iam, tagging, vpc and vpc-recovery."
  }
}

variable "resource_tags" {
  description = "User tags of everything that is made, by which accounts bill and search. The cloud stores them in lower case."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for tag in var.resource_tags : can(regex("^[a-z0-9:_ .-]{1,128}$", tag))])
    error_message = "A tag has 1 to 128 lower-case letters, digits, blanks, colons, underscores, dots and hyphens."
  }
}

variable "access_tags" {
  description = "Access tags of everything that is made, KEY:VALUE, by which policies may grant rights. They have to exist in the account."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for tag in var.access_tags : can(regex("^[a-z0-9_. -]+:[a-z0-9_. -]+$", tag))])
    error_message = "An access tag is KEY:VALUE in lower case."
  }
}
