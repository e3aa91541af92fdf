variable "region" {
  description = "Source region, where the server is."
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

variable "server" {
  description = "Name of the server that snapferry runs on. Its metadata service has to be switched on: `ibmcloud is instance-update NAME --metadata-service true`."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket for images, one of its kind in all of IBM Cloud."
  type        = string
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
