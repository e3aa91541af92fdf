variable "region" {
  description = "Source region, where the servers are that are carried."
  type        = string
}

variable "recovery_region" {
  description = "Region that images are imported to; the bucket is in it."
  type        = string
}

variable "resource_group" {
  description = "Name of the resource group of the servers that are carried."
  type        = string
}

variable "name" {
  description = "What everything is named after."
  type        = string
  default     = "snapferry"
}

variable "subnet" {
  description = "Name of a subnet in the source region, in which the conversion servers are made."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket for images, one of its kind in all of IBM Cloud."
  type        = string
}

variable "image" {
  description = "Name of the conversion servers' own image: `ibmcloud is images --visibility public`."
  type        = string
}

variable "ssh_key" {
  description = "Name of an SSH key that may log in, in both regions."
  type        = string
}

variable "package_url" {
  description = "Where the servers fetch snapferry's Debian package from. It has to be reached from the subnet."
  type        = string
}

variable "package_sha256" {
  description = "SHA-256 of that package, from the release's SHA256SUMS."
  type        = string
}

variable "recovered" {
  description = "Servers to be made from their images in the recovery region, by name, with the address that each gets; none for none."
  type        = map(object({ ip = optional(string) }))
  default     = {}
}

variable "resource_tags" {
  description = "User tags of everything that is made."
  type        = set(string)
  default     = ["service:disaster-recovery"]
}

variable "access_tags" {
  description = "Access tags of everything that is made, KEY:VALUE. They have to exist in the account."
  type        = set(string)
  default     = []
}
