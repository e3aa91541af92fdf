# An Object Storage instance with a bucket for images, and the leave to read it that the image service needs.

resource "ibm_resource_instance" "storage" {
  name              = "${var.name}-storage"
  service           = "cloud-object-storage"
  plan              = "standard"
  location          = "global"
  resource_group_id = var.resource_group_id
  tags              = var.resource_tags
}

resource "ibm_cos_bucket" "images" {
  bucket_name          = var.name
  resource_instance_id = ibm_resource_instance.storage.id
  region_location      = var.region
  storage_class        = var.storage_class
  # The provider's default is true: `destroy` would empty the bucket of every image first.
  force_delete = false
}

# What a killed server leaves of an upload is billed and shown nowhere. `snapferry gc` removes it too.
resource "ibm_cos_bucket_lifecycle_configuration" "images" {
  bucket_crn      = ibm_cos_bucket.images.crn
  bucket_location = ibm_cos_bucket.images.region_location

  lifecycle_rule {
    rule_id = "incomplete-uploads"
    status  = "enable"

    filter {
      prefix = ""
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = var.incomplete_upload_days
    }
  }
}

# Imports read the object by themselves, exports write it: the image service, not whoever asks for them.
resource "ibm_iam_authorization_policy" "images" {
  source_service_name         = "is"
  source_resource_type        = "image"
  target_service_name         = "cloud-object-storage"
  target_resource_instance_id = ibm_resource_instance.storage.guid
  roles                       = [var.allow_export ? "Writer" : "Reader"]
  description                 = "snapferry: images are imported from bucket ${var.name}"
}

# Neither the instance nor the bucket takes access tags as an argument.
resource "ibm_resource_tag" "access" {
  for_each = length(var.access_tags) == 0 ? {} : { instance = ibm_resource_instance.storage.crn, bucket = ibm_cos_bucket.images.crn }

  resource_id = each.value
  tag_type    = "access"
  tags        = var.access_tags
}
