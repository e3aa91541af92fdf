variable "name" {
  description = "Name of the VPC; what is in it has names that begin with it."
  type        = string
}

variable "zone" {
  description = "Zone of the subnet, as in us-south-1; null for that of `subnet`."
  type        = string
  default     = null
}

variable "cidr" {
  description = "IPv4 block of the address prefix and of the subnet, which takes all of it. Not used with `subnet`."
  type        = string
  default     = null
}

variable "subnet" {
  description = "Subnet that is there already, by its id: its VPC, zone and gateway are used, and none is made. null makes a VPC with one subnet."
  type        = object({ id = string })
  default     = null
}

variable "resource_group_id" {
  description = "Resource group that everything is made in."
  type        = string
}

variable "public_gateway" {
  description = "Whether servers reach the internet. They are not reached from there either way. Not used with `subnet`."
  type        = bool
  default     = false
}

variable "ssh_from" {
  description = "Blocks of addresses that may reach port 22."
  type        = set(string)
  default     = []
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
