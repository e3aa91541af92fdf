variable "region" {
  description = "Region of the servers: the source region."
  type        = string
}

variable "zone" {
  description = "Zone of the servers."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+(-[a-z]+)+-[0-9]+$", var.zone))
    error_message = "A zone is a region and a number, as in us-south-1."
  }
}

variable "resource_group" {
  description = "Name of the resource group that everything is made in."
  type        = string
}

variable "name" {
  description = "What the network is named after."
  type        = string
  default     = "snapferry-test"
}

variable "ssh_key" {
  description = "Name of an SSH key in the region that may log in."
  type        = string
}

variable "ssh_from" {
  description = "Blocks of addresses that may reach port 22. None by default."
  type        = set(string)
  default     = []

  validation {
    condition     = !contains(var.ssh_from, "0.0.0.0/0")
    error_message = "Not the whole internet."
  }
}

variable "cidr" {
  description = "IPv4 block of the servers' VPC."
  type        = string
  default     = "10.241.0.0/24"

  validation {
    condition     = can(cidrhost(var.cidr, 0))
    error_message = "Give a block, as in 10.241.0.0/24."
  }
}

variable "servers" {
  description = "The servers, by name: the image that each boots from (`ibmcloud is images --visibility public`), its profile, and its address, if it is to have a certain one."
  type = map(object({
    image   = optional(string, "ibm-debian-12-11-minimal-amd64-1")
    profile = optional(string, "bx2-2x8")
    ip      = optional(string)
  }))
  default = {
    web01   = {}
    web02   = {}
    app01   = {}
    app02   = {}
    db01    = { profile = "bx2-4x16" }
    db02    = { profile = "bx2-4x16" }
    mail01  = {}
    files01 = {}
  }

  validation {
    condition     = alltrue([for name, server in var.servers : length(name) <= 56 && can(regex("^[a-z]([-a-z0-9]*[a-z0-9])?$", name))])
    error_message = "Names have 56 lower-case letters, digits and hyphens at the most, so that NAME-latest is an image's name, and begin with a letter."
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
