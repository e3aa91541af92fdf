variable "name" {
  description = "Name of the server."
  type        = string

  validation {
    condition     = length(var.name) <= 63 && can(regex("^[a-z]([-a-z0-9]*[a-z0-9])?$", var.name))
    error_message = "A server's name has 63 lower-case letters, digits and hyphens at the most, begins with a letter and ends with no hyphen."
  }
}

variable "image_id" {
  description = "Id of the image that it boots from."
  type        = string
}

variable "profile" {
  description = "Profile: number of CPUs, memory, bandwidth."
  type        = string
}

variable "vpc_id" {
  description = "VPC of the subnet."
  type        = string
}

variable "zone" {
  description = "Zone of the subnet."
  type        = string
}

variable "subnet_id" {
  description = "Subnet that it is in."
  type        = string
}

variable "security_group_id" {
  description = "Security group of its interface."
  type        = string
}

variable "ip" {
  description = "Its address; null for any that is free."
  type        = string
  default     = null
}

variable "key_ids" {
  description = "SSH keys that may log in."
  type        = set(string)
}

variable "resource_group_id" {
  description = "Resource group of the server."
  type        = string
}

variable "user_data" {
  description = "Cloud-init's user data. Everybody who may see the server can read it: no secret belongs here."
  type        = string
  default     = null
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

variable "total_volume_bandwidth" {
  description = "Mbps for volumes out of the profile's bandwidth; null for the profile's own share, a quarter."
  type        = number
  default     = null

  validation {
    # Not `||`, whose right side is looked at in any case.
    condition     = var.total_volume_bandwidth == null ? true : var.total_volume_bandwidth >= 500
    error_message = "Volumes get 500 Mbps at least, and so does the network."
  }
}

variable "trusted_profile_id" {
  description = "Trusted profile that the server is made with as its default; null for none. It can't be set later."
  type        = string
  default     = null
}

variable "metadata_protocol" {
  description = "Protocol of the instance metadata service, http or https; null leaves the service off."
  type        = string
  default     = null

  validation {
    condition     = var.metadata_protocol == null ? true : contains(["http", "https"], var.metadata_protocol)
    error_message = "The metadata service speaks http or https."
  }
}
