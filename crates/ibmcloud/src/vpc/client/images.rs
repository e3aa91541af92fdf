//! Operations on images: import, rename, deprecate, delete, export.

use std::time::SystemTime;

use serde_json::{Value, json};
use snapferry_base::clock::rfc3339;

use super::RegionClient;
use super::conflict::Conflict;
use super::create::{Creation, differs};
use crate::vpc::error::VpcError;
use crate::vpc::http::ApiRequest;
use crate::vpc::model::{ExportFormat, ExportJob, ExportState, Image, ImageState, OperatingSystem};
use crate::vpc::names::{ExportJobId, ImageId, ResourceGroupId, ResourceName, VolumeId};
use crate::vpc::wait::{Patience, Sighting, Verdict};

/// Largest disk that can be imported as an image, in GB (IBM's documentation of custom images).
pub const LARGEST_IMAGE: u64 = 250;

/// Source of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageOrigin {
    /// Object in a bucket, and the operating system in it.
    File {
        /// Address of the object, as `cos://location/bucket/key`.
        href: String,
        /// Name of the operating system, as the region lists it.
        operating_system: String,
    },
    /// Boot volume of a stopped server.
    Volume(VolumeId),
}

/// Request for a new image.
#[derive(Clone, Debug)]
pub struct ImagePrototype {
    /// Name of the new image.
    pub name: ResourceName,
    /// Source of the image.
    pub origin: ImageOrigin,
    /// Resource group; chosen by the API if none.
    pub resource_group: Option<ResourceGroupId>,
}

impl ImagePrototype {
    pub(super) fn body(&self) -> Value {
        let mut body = match &self.origin {
            ImageOrigin::File { href, operating_system } => json!({
                "file": { "href": href },
                "operating_system": { "name": operating_system },
            }),
            ImageOrigin::Volume(id) => json!({ "source_volume": { "id": id } }),
        };
        body["name"] = json!(self.name);
        if let Some(group) = &self.resource_group {
            body["resource_group"] = json!({ "id": group });
        }
        body
    }
}

/// Filter for a list of the account's own images.
#[derive(Clone, Debug, Default)]
pub struct ImageFilter {
    /// Keep only images in these states; all states if empty.
    pub status: Vec<ImageState>,
}

impl ImageFilter {
    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = own_images();
        if !self.status.is_empty() {
            let states: Vec<&str> = self.status.iter().map(ImageState::as_str).collect();
            query.push(("status", states.join(",")));
        }
        query
    }
}

/// Query that restricts a list to the account's own images (API change log, 2025-06-30).
fn own_images() -> Vec<(&'static str, String)> {
    vec![("remote.account.id", "null".to_owned())]
}

/// Time when an image is to change its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// At that time.
    At(SystemTime),
    /// Clear the schedule.
    Never,
}

impl Schedule {
    fn body(self) -> Value {
        match self {
            Self::At(time) => json!(rfc3339(time)),
            Self::Never => Value::Null,
        }
    }
}

/// Changes to an image; a field that is none stays as it is.
#[derive(Clone, Debug, Default)]
pub struct ImagePatch {
    /// New name of the image.
    pub name: Option<ResourceName>,
    /// Time when the image becomes deprecated: no longer recommended.
    pub deprecation: Option<Schedule>,
    /// Time when the image becomes obsolete: no longer bootable.
    pub obsolescence: Option<Schedule>,
}

impl ImagePatch {
    pub(super) fn body(&self) -> Value {
        let mut body = json!({});
        if let Some(name) = &self.name {
            body["name"] = json!(name);
        }
        if let Some(schedule) = self.deprecation {
            body["deprecation_at"] = schedule.body();
        }
        if let Some(schedule) = self.obsolescence {
            body["obsolescence_at"] = schedule.body();
        }
        body
    }
}

/// Request for a job that exports an image.
#[derive(Clone, Debug)]
pub struct ExportPrototype {
    /// Name of the job, unique for the image; the object has the same name with a suffix.
    pub name: ResourceName,
    /// Name of the bucket that the job writes into.
    pub bucket: String,
    /// File format of the object.
    pub format: ExportFormat,
}

impl RegionClient {
    /// Returns the account's own images that match `filter`.
    ///
    /// # Errors
    /// If the API can't be reached, refuses, or returns a malformed response; the same holds for every
    /// operation.
    pub async fn images(&self, filter: &ImageFilter) -> Result<Vec<Image>, VpcError> {
        self.list(&["images"], "images", &filter.query()).await
    }

    /// Returns the account's own image with that name.
    ///
    /// # Errors
    /// As for [`RegionClient::images`].
    pub async fn image_by_name(&self, name: &str) -> Result<Option<Image>, VpcError> {
        self.by_name(&["images"], "images", &own_images(), name, |image: &Image| &image.name).await
    }

    /// Returns the image with that identifier.
    ///
    /// # Errors
    /// As for [`RegionClient::images`].
    pub async fn image(&self, id: &ImageId) -> Result<Option<Image>, VpcError> {
        self.get_if_any(&["images", id.as_str()]).await
    }

    /// Returns the account's own image with that name, or else with that identifier.
    ///
    /// # Errors
    /// [`VpcError::Missing`] if there is none, and as for [`RegionClient::images`].
    pub async fn named_image(&self, name_or_id: &str) -> Result<Image, VpcError> {
        let found = match self.image_by_name(name_or_id).await? {
            Some(found) => Some(found),
            None => self.image(&ImageId::new(name_or_id)).await?,
        };
        self.require(found, "image", name_or_id)
    }

    /// Creates an image, or adopts the existing one with that name and source. The API does not report the
    /// object that an image was imported from. So for an import the operating system has to match, and the
    /// caller compares the file's SHA-256.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] if another image has the name, and as for [`RegionClient::images`].
    pub async fn create_image(&self, prototype: &ImagePrototype) -> Result<Image, VpcError> {
        let call = ApiRequest::post(&["images"], &prototype.body())?;
        let creation = Creation { kind: "image", name: &prototype.name, call, patience: Patience::BUSY };
        self.create(
            &creation,
            || self.image_by_name(prototype.name.as_str()),
            |image: &Image| image.id.as_str(),
            |image| match &prototype.origin {
                ImageOrigin::File { operating_system, .. } => {
                    let found = image.operating_system.as_ref().map(|os| os.name.as_str());
                    differs("operating system", operating_system, found)
                }
                ImageOrigin::Volume(id) => differs(
                    "source volume",
                    id.as_str(),
                    image.source_volume.as_ref().map(|volume| volume.id.as_str()),
                ),
            },
        )
        .await
    }

    /// Changes an image. A second request has no further effect.
    ///
    /// # Errors
    /// As for [`RegionClient::images`].
    pub async fn patch_image(&self, id: &ImageId, patch: &ImagePatch) -> Result<Image, VpcError> {
        let (path, body) = (["images", id.as_str()], patch.body());
        let send = async || self.patch(&path, &body).await;
        self.client.change(&format!("image {id}"), Patience::BUSY, send, async || Ok(Conflict::Passing)).await
    }

    /// Renames an image. The API has no preconditions for images, so after a refusal the client looks up
    /// which image has the new name.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] if another image has the name, and as for [`RegionClient::images`].
    pub async fn rename_image(&self, id: &ImageId, name: &ResourceName) -> Result<Image, VpcError> {
        let patch = ImagePatch { name: Some(name.clone()), ..ImagePatch::default() }.body();
        let path = ["images", id.as_str()];
        let check = async || Ok(Conflict::unless(self.renamed(id, name).await?));
        let send = async || self.patch(&path, &patch).await;
        match self.client.change(&format!("image {id}"), Patience::BUSY, send, check).await {
            Err(VpcError::Refused { request, refusal }) if refusal.status == 400 => {
                self.renamed(id, name).await?.ok_or(VpcError::Refused { request, refusal })
            }
            renamed => renamed,
        }
    }

    /// Returns the image if it has the name; none if no image has it.
    async fn renamed(&self, id: &ImageId, name: &ResourceName) -> Result<Option<Image>, VpcError> {
        match self.image_by_name(name.as_str()).await? {
            Some(image) if image.id != *id => Err(VpcError::NameTaken {
                kind: "image",
                name: name.as_str().to_owned(),
                id: image.id.as_str().to_owned(),
                difference: "and it is another one".to_owned(),
            }),
            found => Ok(found),
        }
    }

    /// Marks an image as no longer recommended. It is billed as before.
    ///
    /// # Errors
    /// As for [`RegionClient::images`].
    pub async fn deprecate_image(&self, id: &ImageId) -> Result<(), VpcError> {
        self.set_status(id, "deprecate", &ImageState::Deprecated).await
    }

    /// Makes an image unbootable. It is billed as before.
    ///
    /// # Errors
    /// As for [`RegionClient::images`].
    pub async fn obsolete_image(&self, id: &ImageId) -> Result<(), VpcError> {
        self.set_status(id, "obsolete", &ImageState::Obsolete).await
    }

    /// Sends the action `action`. If the response is lost or a refusal, the image's own state decides.
    async fn set_status(&self, id: &ImageId, action: &str, target: &ImageState) -> Result<(), VpcError> {
        let call = ApiRequest::post(&["images", id.as_str(), action], &json!({}))?.freely();
        let is_done = async || Ok(self.image(id).await?.is_some_and(|image| image.status == *target));
        let send = async || self.client.send(&call).await.map(|_| ());
        let check = async || match self.image(id).await? {
            Some(image) if image.status == *target => Ok(Conflict::Done(())),
            // From its present state, the image can't reach the target.
            Some(image) if !matches!(image.status, ImageState::Available | ImageState::Deprecated) => {
                Ok(Conflict::Final)
            }
            _ => Ok(Conflict::Passing),
        };
        match self.client.change(&format!("image {id}"), Patience::BUSY, send, check).await {
            Err(err @ VpcError::Refused { .. }) if !err.is_not_found() && is_done().await? => Ok(()),
            result => result,
        }
    }

    /// Requests the deletion of an image. Succeeds too if it is already deleted or being deleted. Servers
    /// created from it keep running.
    ///
    /// # Errors
    /// As for [`RegionClient::images`].
    pub async fn delete_image(&self, id: &ImageId) -> Result<(), VpcError> {
        let is_deleting =
            async || Ok(self.image(id).await?.is_none_or(|image| image.status == ImageState::Deleting));
        let check = async || Ok(Conflict::unless(is_deleting().await?.then_some(())));
        match self.remove(&format!("image {id}"), Patience::BUSY, &["images", id.as_str()], check).await {
            Err(err @ VpcError::Refused { .. }) if err.is_bad_request() && is_deleting().await? => Ok(()),
            deleted => deleted,
        }
    }

    /// Waits until an image is available in all zones.
    ///
    /// # Errors
    /// [`VpcError::Ended`] if the import fails, [`VpcError::Overdue`], and as for [`RegionClient::images`].
    pub async fn image_available(&self, id: &ImageId, patience: Patience) -> Result<Image, VpcError> {
        self.waiting(format!("image {id}"), patience)
            .until(async || {
                let image = self.image(id).await?;
                let image = self.require(image, "image", id.as_str())?;
                let verdict = match image.status {
                    ImageState::Available | ImageState::Deprecated => Verdict::Reached,
                    ImageState::Failed
                    | ImageState::Unusable
                    | ImageState::Deleting
                    | ImageState::Obsolete => Verdict::Ended,
                    _ => Verdict::Underway,
                };
                let reasons = image.status_reasons.iter().map(|reason| reason.describe()).collect();
                Ok(Sighting { verdict, state: image.status.to_string(), reasons, resource: image })
            })
            .await
    }

    /// Waits until an image is deleted.
    ///
    /// # Errors
    /// [`VpcError::Overdue`], and as for [`RegionClient::images`].
    pub async fn image_gone(&self, id: &ImageId, patience: Patience) -> Result<(), VpcError> {
        self.wait_until_gone(format!("image {id}"), patience, async || {
            let image = self.image(id).await?;
            Ok(image.map(|image| (image.status.to_string(), image.status_reasons)))
        })
        .await
    }

    /// Starts a job that exports an image, or adopts the image's existing job with that name and bucket.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] if a job into another bucket has the name, and as for
    /// [`RegionClient::images`].
    pub async fn export_image(
        &self,
        id: &ImageId,
        prototype: &ExportPrototype,
    ) -> Result<ExportJob, VpcError> {
        let body = json!({
            "name": prototype.name,
            "storage_bucket": { "name": prototype.bucket },
            "format": prototype.format,
        });
        let call = ApiRequest::post(&["images", id.as_str(), "export_jobs"], &body)?;
        let creation = Creation { kind: "export job", name: &prototype.name, call, patience: Patience::BUSY };
        self.create(
            &creation,
            async || {
                let jobs = self.export_jobs(id).await?;
                Ok(jobs.into_iter().find(|job| job.name == prototype.name.as_str()))
            },
            |job: &ExportJob| job.id.as_str(),
            |job| differs("bucket", &prototype.bucket, Some(&job.storage_bucket.name)),
        )
        .await
    }

    /// Returns the export jobs of an image.
    ///
    /// # Errors
    /// As for [`RegionClient::images`].
    pub async fn export_jobs(&self, id: &ImageId) -> Result<Vec<ExportJob>, VpcError> {
        self.unpaged_list(&["images", id.as_str(), "export_jobs"], "export_jobs").await
    }

    /// Waits until an export job has succeeded.
    ///
    /// # Errors
    /// [`VpcError::Ended`] if it fails, [`VpcError::Overdue`], and as for [`RegionClient::images`].
    pub async fn export_succeeded(
        &self,
        id: &ImageId,
        job: &ExportJobId,
        patience: Patience,
    ) -> Result<ExportJob, VpcError> {
        let path = ["images", id.as_str(), "export_jobs", job.as_str()];
        self.waiting(format!("export job {job}"), patience)
            .until(async || {
                let resource: Option<ExportJob> = self.get_if_any(&path).await?;
                let resource = self.require(resource, "export job", job.as_str())?;
                let verdict = match resource.status {
                    ExportState::Succeeded => Verdict::Reached,
                    ExportState::Failed | ExportState::Deleting => Verdict::Ended,
                    _ => Verdict::Underway,
                };
                let reasons = resource.status_reasons.iter().map(|reason| reason.describe()).collect();
                Ok(Sighting { verdict, state: resource.status.to_string(), reasons, resource })
            })
            .await
    }

    /// Deletes an export job, and stops it if it is still running. The object of a job that has succeeded
    /// stays.
    ///
    /// # Errors
    /// As for [`RegionClient::images`].
    pub async fn delete_export_job(&self, id: &ImageId, job: &ExportJobId) -> Result<(), VpcError> {
        let path = ["images", id.as_str(), "export_jobs", job.as_str()];
        self.remove(&format!("export job {job}"), Patience::BUSY, &path, async || {
            let current: Option<ExportJob> = self.get_if_any(&path).await?;
            Ok(Conflict::unless(
                current.is_none_or(|current| current.status == ExportState::Deleting).then_some(()),
            ))
        })
        .await
    }

    /// Returns the operating systems that the region supports.
    ///
    /// # Errors
    /// As for [`RegionClient::images`].
    pub async fn operating_systems(&self) -> Result<Vec<OperatingSystem>, VpcError> {
        self.list(&["operating_systems"], "operating_systems", &[]).await
    }

    /// Returns the operating system with that name.
    ///
    /// # Errors
    /// As for [`RegionClient::images`].
    pub async fn operating_system(&self, name: &str) -> Result<Option<OperatingSystem>, VpcError> {
        self.get_if_any(&["operating_systems", name]).await
    }
}
