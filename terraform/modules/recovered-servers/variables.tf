variable "zone" {
  description = "Zone of the servers; null for that of `subnet`."
  type        = string
  default     = null

  validation {
    condition     = var.zone == null ? true : can(regex("^[a-z]+(-[a-z]+)+-[0-9]+$", var.zone))
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
  default     = "recovered"
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
  description = "IPv4 block of the servers' VPC. Not used with `subnet`."
  type        = string
  default     = "10.10.0.0/24"

  validation {
    condition     = can(cidrhost(var.cidr, 0))
    error_message = "Give a block, as in 10.10.0.0/24."
  }
}

variable "subnet" {
  description = "Subnet that is there already, by its id: its VPC, zone and gateway are used, and none is made. null makes a VPC with one subnet."
  type        = object({ id = string })
  default     = null
}

variable "public_gateway" {
  description = "Whether the servers reach the internet. A copy that begins to send mail or to bill is no test: so not by default. Not used with `subnet`."
  type        = bool
  default     = false
}

variable "servers" {
  description = "The servers, by the name of the one that was carried: profile, address, and the image if it is not NAME-latest (an older one, say)."
  type = map(object({
    profile = optional(string, "bx2-2x8")
    ip      = optional(string)
    image   = optional(string)
  }))

  validation {
    condition     = length(var.servers) > 0
    error_message = "Name a server."
  }

  validation {
    condition     = alltrue([for name, server in var.servers : server.image != null || length(name) <= 56])
    error_message = "The image of a server whose name has more than 56 letters is not called NAME-latest: give its `image`, see `snapferry images list`."
  }

  validation {
    condition     = length(distinct([for server in var.servers : server.ip if server.ip != null])) == length([for server in var.servers : server.ip if server.ip != null])
    error_message = "Two servers have the same address."
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
