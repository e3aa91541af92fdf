variable "region" {
  description = "Source region, where the servers are that are carried: conversion servers attach volumes of their snapshots."
  type        = string
}

variable "zone" {
  description = "Zone of the conversion servers; null for that of `subnet`."
  type        = string
  default     = null
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
}

variable "image" {
  description = "Name of the servers' own image, with systemd 252 or later (Debian 12, Ubuntu 24.04): `ibmcloud is images --visibility public`."
  type        = string
}

variable "ssh_keys" {
  description = "Names of SSH keys in the source region that may log in."
  type        = set(string)
}

variable "ssh_from" {
  description = "Blocks of addresses that may reach port 22, as in a VPN's. None by default: nothing reaches these servers."
  type        = set(string)
  default     = []
}

variable "cidr" {
  description = "IPv4 block of the servers' own VPC. Not used with `subnet`."
  type        = string
  default     = "10.240.0.0/28"
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
}

variable "level" {
  description = "Compression level: fast, balanced, small or smallest."
  type        = string
  default     = "fast"
}

variable "package_url" {
  description = "Where the servers fetch snapferry's Debian package from."
  type        = string
}

variable "package_sha256" {
  description = "SHA-256 of that package, from the release's SHA256SUMS. Another one is not installed."
  type        = string
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
}

variable "access_tags" {
  description = "Access tags of everything that is made, KEY:VALUE, by which policies may grant rights. They have to exist in the account."
  type        = set(string)
  default     = []
}
