variable "name" {
  description = "Name of the bucket, one of its kind in all of IBM Cloud."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.name))
    error_message = "A bucket's name has 3 to 63 lower-case letters, digits and hyphens, and begins and ends with a letter or digit."
  }
}

variable "region" {
  description = "Region of the bucket: the recovery region, since images are imported from a bucket of their own region."
  type        = string
}

variable "resource_group_id" {
  description = "Resource group of the Object Storage instance."
  type        = string
}

variable "storage_class" {
  description = "Storage class of the bucket: standard, vault, cold or smart. Images are read once when they are made, and then seldom."
  type        = string
  default     = "smart"

  validation {
    condition     = contains(["standard", "vault", "cold", "smart"], var.storage_class)
    error_message = "Storage classes are standard, vault, cold and smart."
  }
}

variable "incomplete_upload_days" {
  description = "Days after which the store drops an upload that was never completed. An upload of ours takes hours."
  type        = number
  default     = 3

  validation {
    condition     = var.incomplete_upload_days >= 1
    error_message = "Give one day at least, so that an upload that is under way is left alone."
  }
}

variable "allow_export" {
  description = "Whether the image service may write into the bucket too, for `snapferry images export`."
  type        = bool
  default     = false
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
