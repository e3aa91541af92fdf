variable "region" {
  description = "Source region, where the servers are that are carried: conversion servers attach volumes of their snapshots."
  type        = string
}

variable "zone" {
  description = "Zone of the conversion servers; null for that of `subnet`."
  type        = string
  default     = null

  validation {
    condition     = var.zone == null ? true : can(regex("^[a-z]+(-[a-z]+)+-[0-9]+$", var.zone))
    error_message = "A zone is a region and a number, as in us-south-1."
  }
}

variable "recovery_region" {
  description = "Region that images are imported to; the bucket is in it."
  type        = string
}

variable "resource_group" {
  description = "Name of the resource group, that of the servers that are carried: rights end where it ends."
  type        = string
}

variable "name" {
  description = "What everything is named after: servers are NAME-1 and on."
  type        = string
  default     = "snapferry"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,39}$", var.name))
    error_message = "Give up to 40 lower-case letters, digits and hyphens, a letter first."
  }
}

variable "bucket" {
  description = "Name of the bucket for images, one of its kind in all of IBM Cloud."
  type        = string
}

variable "storage_class" {
  description = "Storage class of the bucket."
  type        = string
  default     = "smart"
}

variable "allow_export" {
  description = "Whether images may be exported into the bucket."
  type        = bool
  default     = false
}

variable "server_count" {
  description = "Number of conversion servers. More than one share the work through Redis."
  type        = number
  default     = 1

  validation {
    condition     = var.server_count >= 1 && var.server_count <= 20 && floor(var.server_count) == var.server_count
    error_message = "Give a whole number from 1 to 20."
  }
}

variable "profile" {
  description = "Profile of the conversion servers. Their volume bandwidth limits a job sooner than their CPUs do."
  type        = string
  default     = "bx2-4x16"
}

variable "total_volume_bandwidth" {
  description = "Mbps for volumes out of the profile's bandwidth (bx2-4x16 has 8000): the disk is read faster than its image is sent. At least 500 have to be left."
  type        = number
  default     = 6000

  validation {
    condition     = var.total_volume_bandwidth >= 500
    error_message = "Volumes get 500 Mbps at least, and so does the network."
  }
}

variable "image" {
  description = "Name of the servers' own image, with systemd 252 or later (Debian 12, Ubuntu 24.04): `ibmcloud is images --visibility public`."
  type        = string
}

variable "ssh_keys" {
  description = "Names of SSH keys in the source region that may log in."
  type        = set(string)

  validation {
    condition     = length(var.ssh_keys) > 0
    error_message = "Name a key: without one nobody gets in."
  }
}

variable "ssh_from" {
  description = "Blocks of addresses that may reach port 22, as in a VPN's. None by default: nothing reaches these servers."
  type        = set(string)
  default     = []

  validation {
    condition     = !contains(var.ssh_from, "0.0.0.0/0")
    error_message = "Not the whole internet."
  }
}

variable "cidr" {
  description = "IPv4 block of the servers' own VPC. Not used with `subnet`."
  type        = string
  default     = "10.240.0.0/28"

  validation {
    condition     = can(cidrhost(var.cidr, 0))
    error_message = "Give a block, as in 10.240.0.0/28."
  }
}

variable "subnet" {
  description = "Subnet that is there already, by its id: its VPC, zone and gateway are used, and none is made. null makes a VPC with one subnet."
  type        = object({ id = string })
  default     = null
}

variable "private_endpoints" {
  description = "Makes endpoint gateways for the services that snapferry calls, and no public gateway; null for public addresses. `services` leaves out those for which the VPC has a gateway (iam, tagging, vpc, vpc-recovery). `package_url` and the package's mirrors have to be reached from the subnet then."
  type = object({
    services = optional(set(string), ["iam", "tagging", "vpc", "vpc-recovery"])
  })
  default = null
}

variable "metadata_protocol" {
  description = "Protocol of the instance metadata service, by which servers take on their trusted profile."
  type        = string
  default     = "https"

  validation {
    condition     = contains(["http", "https"], var.metadata_protocol)
    error_message = "The metadata service speaks http or https."
  }
}

variable "level" {
  description = "Compression level: fast, balanced, small or smallest."
  type        = string
  default     = "fast"

  validation {
    condition     = contains(["fast", "balanced", "small", "smallest"], var.level)
    error_message = "Levels are fast, balanced, small and smallest."
  }
}

variable "package_url" {
  description = "Where the servers fetch snapferry's Debian package from."
  type        = string

  validation {
    condition     = startswith(var.package_url, "https://")
    error_message = "Give an https:// address."
  }
}

variable "package_sha256" {
  description = "SHA-256 of that package, from the release's SHA256SUMS. Another one is not installed."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.package_sha256))
    error_message = "Give 64 hexadecimal digits in lower case."
  }
}

variable "redis" {
  description = "Makes a Databases for Redis for the queue, with this memory in MB for each of its members; null makes none."
  type = object({
    memory_mb = optional(number, 4096)
  })
  default = null
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
