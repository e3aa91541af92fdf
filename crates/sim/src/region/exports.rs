//! Jobs that export images into buckets.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ask::{Answer, Ask, Refused};
use super::catalog::{crn, regional_id};
use super::config::RegionConfig;
use super::jobs::Job;
use super::life::{Lifecycle, Turn};
use super::lists::whole;
use super::world::Region;

/// Highest number of unfinished export jobs of one image; [`MOST_KEPT`] limits all of its jobs.
const MOST_ACTIVE: usize = 5;
const MOST_KEPT: usize = 10;

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
    fn show_export(&self, ask: &Ask, job: &ExportJob) -> Value {
        let life = &job.life;
        let mut shown = json!({
            "id": life.id,
            "name": life.name,
            "href": ask.href(&format!("images/{}/export_jobs/{}", job.image, life.id)),
            "created_at": life.created.shown(),
            "resource_type": "image_export_job",
            "status": life.state,
            "status_reasons": life.reasons(),
            "format": job.format,
            "storage_bucket": { "name": job.bucket, "crn": crn("global", "bucket", &job.bucket) },
            "storage_href": format!("cos://{}/{}/{}", self.furniture.region, job.bucket, job.key()),
            "storage_object": { "name": job.key() },
        });
        if life.state != "queued" {
            shown["started_at"] = json!(life.created.shown());
        }
        if matches!(life.state.as_str(), "succeeded" | "failed") {
            shown["completed_at"] = json!(ask.now.shown());
        }
        shown
    }

    fn exports_of<'a>(&'a self, image: &'a str) -> impl Iterator<Item = &'a ExportJob> {
        self.exports.values().filter(move |job| job.image == image)
    }

    pub(super) fn list_exports(&self, ask: &Ask) -> Result<Answer, Refused> {
        self.image(ask.id(0))?;
        let jobs = self
            .exports_of(ask.id(0))
            .filter(|job| ask.query("name").is_none_or(|name| name == job.life.name));
        Ok(whole(ask, "export_jobs", jobs.map(|job| (&job.life, self.show_export(ask, job))).collect()))
    }

    pub(super) fn get_export(&self, ask: &Ask) -> Result<Answer, Refused> {
        let job = self.exports.get(ask.id(1)).filter(|job| job.image == ask.id(0));
        let job = job.ok_or_else(|| Refused::not_found("image_export_job", ask.id(1)))?;
        Ok(Answer::ok(self.show_export(ask, job)))
    }

    pub(super) fn create_export(
        &mut self,
        ask: &Ask,
        config: &RegionConfig,
        jobs: &mut Vec<Job>,
    ) -> Result<Answer, Refused> {
        let image = self.image(ask.id(0))?;
        if !matches!(image.life.state.as_str(), "available" | "deprecated" | "partially_available") {
            return Err(Refused::conflict("invalid_state", "The image is not available."));
        }
        let name = match ask.text("/name") {
            Some(_) => ask.name()?,
            None => format!("export-{}", self.exports.len()),
        };
        if self.exports_of(ask.id(0)).any(|job| job.life.name == name) {
            return Err(Refused::name_taken(&name));
        }
        if self.exports_of(ask.id(0)).filter(|job| job.is_active()).count() >= MOST_ACTIVE
            || self.exports_of(ask.id(0)).count() >= MOST_KEPT
        {
            return Err(Refused::new(400, "over_quota", "The image has as many export jobs as it can have."));
        }
        let bucket =
            ask.text("/storage_bucket/name").or_else(|| ask.text("/storage_bucket/crn")?.rsplit(':').next());
        let bucket = bucket.ok_or_else(|| {
            Refused::field(400, "missing_field", "storage_bucket", "The field is required.")
        })?;
        let format = ask.text("/format").unwrap_or("qcow2");
        if !matches!(format, "qcow2" | "vhd") {
            return Err(Refused::field(400, "bad_field", "format", "The format is qcow2 or vhd."));
        }
        let id = regional_id(&self.furniture.region);
        let mut life = Lifecycle::new(id.clone(), name, "running", ask.now)
            .turns("succeeded", ask.now.after(config.delays.export));
        if config.image_service_authorized {
            life.work = 1;
            jobs.push(Job::export(&self.furniture.region, &id));
        } else {
            life.doomed = Some("cannot_access_storage_bucket".to_owned());
        }
        let job = ExportJob {
            life,
            image: ask.id(0).to_owned(),
            bucket: bucket.to_owned(),
            format: format.to_owned(),
        };
        let answer = Answer::created(self.show_export(ask, &job), &id);
        self.exports.insert(id, job);
        Ok(answer)
    }

    pub(super) fn delete_export(&mut self, ask: &Ask, config: &RegionConfig) -> Result<Answer, Refused> {
        self.get_export(ask)?;
        let Some(job) = self.exports.get_mut(ask.id(1)) else {
            return Err(Refused::not_found("image_export_job", ask.id(1)));
        };
        job.life.enter("deleting", ask.now.after(config.delays.deletion), Turn::Gone);
        Ok(Answer::empty(202, ask.id(1)))
    }
}
