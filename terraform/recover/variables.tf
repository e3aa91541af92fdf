variable "region" {
  description = "Region of the servers: the recovery region, where the images are."
  type        = string
}

variable "zone" {
  description = "Zone of the servers; null for that of `subnet`."
  type        = string
  default     = null
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
}

variable "cidr" {
  description = "IPv4 block of the servers' VPC. Not used with `subnet`."
  type        = string
  default     = "10.10.0.0/24"
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
