//! Jobs that export images into buckets.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::catalog::{crn, regional_id};
use super::config::RegionConfig;
use super::jobs::Job;
use super::lifecycle::{Lifecycle, Turn};
use super::lists::unpaged;
use super::request::{ApiError, ApiRequest, ApiResponse};
use super::state::Region;

/// Highest number of unfinished export jobs of one image; [`MAX_KEPT`] limits all of its jobs.
const MAX_ACTIVE: usize = 5;
const MAX_KEPT: usize = 10;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ExportJob {
    pub life: Lifecycle,
    pub image: String,
    pub bucket: String,
    pub format: String,
}

impl ExportJob {
    /// Returns the object's key: the job's name and the format's suffix.
    pub fn key(&self) -> String {
        format!("{}.{}", self.life.name, self.format)
    }

    fn is_active(&self) -> bool {
        matches!(self.life.state.as_str(), "queued" | "running")
    }
}

impl Region {
    fn show_export(&self, request: &ApiRequest, job: &ExportJob) -> Value {
        let life = &job.life;
        let mut shown = json!({
            "id": life.id,
            "name": life.name,
            "href": request.href(&format!("images/{}/export_jobs/{}", job.image, life.id)),
            "created_at": life.created.to_rfc3339(),
            "resource_type": "image_export_job",
            "status": life.state,
            "status_reasons": life.reasons(),
            "format": job.format,
            "storage_bucket": { "name": job.bucket, "crn": crn("global", "bucket", &job.bucket) },
            "storage_href": format!("cos://{}/{}/{}", self.catalog.region, job.bucket, job.key()),
            "storage_object": { "name": job.key() },
        });
        if life.state != "queued" {
            shown["started_at"] = json!(life.created.to_rfc3339());
        }
        if matches!(life.state.as_str(), "succeeded" | "failed") {
            shown["completed_at"] = json!(request.now.to_rfc3339());
        }
        shown
    }

    fn exports_of<'a>(&'a self, image: &'a str) -> impl Iterator<Item = &'a ExportJob> {
        self.exports.values().filter(move |job| job.image == image)
    }

    pub(super) fn list_exports(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        self.image(request.id(0))?;
        let jobs = self
            .exports_of(request.id(0))
            .filter(|job| request.query("name").is_none_or(|name| name == job.life.name));
        Ok(unpaged(
            request,
            "export_jobs",
            jobs.map(|job| (&job.life, self.show_export(request, job))).collect(),
        ))
    }

    pub(super) fn get_export(&self, request: &ApiRequest) -> Result<ApiResponse, ApiError> {
        let job = self.exports.get(request.id(1)).filter(|job| job.image == request.id(0));
        let job = job.ok_or_else(|| ApiError::not_found("image_export_job", request.id(1)))?;
        Ok(ApiResponse::ok(self.show_export(request, job)))
    }

    pub(super) fn create_export(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
        jobs: &mut Vec<Job>,
    ) -> Result<ApiResponse, ApiError> {
        let image = self.image(request.id(0))?;
        if !matches!(image.life.state.as_str(), "available" | "deprecated" | "partially_available") {
            return Err(ApiError::conflict("invalid_state", "The image is not available."));
        }
        let name = match request.text("/name") {
            Some(_) => request.name()?,
            None => format!("export-{}", self.exports.len()),
        };
        if self.exports_of(request.id(0)).any(|job| job.life.name == name) {
            return Err(ApiError::name_taken(&name));
        }
        if self.exports_of(request.id(0)).filter(|job| job.is_active()).count() >= MAX_ACTIVE
            || self.exports_of(request.id(0)).count() >= MAX_KEPT
        {
            return Err(ApiError::new(
                400,
                "over_quota",
                "The image has as many export jobs as it can have.",
            ));
        }
        let bucket = request
            .text("/storage_bucket/name")
            .or_else(|| request.text("/storage_bucket/crn")?.rsplit(':').next());
        let bucket = bucket.ok_or_else(|| {
            ApiError::field(400, "missing_field", "storage_bucket", "The field is required.")
        })?;
        let format = request.text("/format").unwrap_or("qcow2");
        if !matches!(format, "qcow2" | "vhd") {
            return Err(ApiError::field(400, "bad_field", "format", "The format is qcow2 or vhd."));
        }
        let id = regional_id(&self.catalog.region);
        let mut life = Lifecycle::new(id.clone(), name, "running", request.now)
            .then("succeeded", request.now.after(config.delays.export));
        if config.image_service_authorized {
            life.work = 1;
            jobs.push(Job::export(&self.catalog.region, &id));
        } else {
            life.doomed = Some("cannot_access_storage_bucket".to_owned());
        }
        let job = ExportJob {
            life,
            image: request.id(0).to_owned(),
            bucket: bucket.to_owned(),
            format: format.to_owned(),
        };
        let response = ApiResponse::created(self.show_export(request, &job), &id);
        self.exports.insert(id, job);
        Ok(response)
    }

    pub(super) fn delete_export(
        &mut self,
        request: &ApiRequest,
        config: &RegionConfig,
    ) -> Result<ApiResponse, ApiError> {
        self.get_export(request)?;
        let Some(job) = self.exports.get_mut(request.id(1)) else {
            return Err(ApiError::not_found("image_export_job", request.id(1)));
        };
        job.life.enter("deleting", request.now.after(config.delays.deletion), Turn::Gone);
        Ok(ApiResponse::empty(202, request.id(1)))
    }
}
