variable "name" {
  description = "Name of the profile, unique in the account."
  type        = string
}

variable "resource_group_id" {
  description = "Resource group of the servers that are carried, and of all that jobs make."
  type        = string
}

variable "bucket_name" {
  description = "Bucket that images are uploaded to."
  type        = string
}

variable "storage_guid" {
  description = "GUID of the bucket's Object Storage instance."
  type        = string
}

variable "servers" {
  description = "Conversion servers by name: id, CRN, and whether the profile has to be linked to it, because it was not made with it as its default."
  type = map(object({
    id   = string
    crn  = string
    link = optional(bool, false)
  }))
}
