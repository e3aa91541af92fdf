output "name" {
  description = "Name of the bucket."
  value       = ibm_cos_bucket.images.bucket_name
}

output "region" {
  description = "Region of the bucket."
  value       = ibm_cos_bucket.images.region_location
}

output "instance_guid" {
  description = "GUID of the Object Storage instance, by which access policies name it."
  value       = ibm_resource_instance.storage.guid
}
