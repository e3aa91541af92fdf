//! Operations on the attachments of volumes to servers.

use serde_json::json;

use super::RegionClient;
use super::conflict::Conflict;
use super::create::{Creation, differs};
use crate::vpc::error::VpcError;
use crate::vpc::http::ApiRequest;
use crate::vpc::model::{AttachmentState, VolumeAttachment};
use crate::vpc::names::{AttachmentId, InstanceId, ResourceName, VolumeId};
use crate::vpc::wait::{Patience, Sighting, Verdict};

impl RegionClient {
    /// Returns the attachments of all volumes on a server, the boot volume's included.
    ///
    /// # Errors
    /// If the API can't be reached, refuses, or returns a malformed response; the same holds for every
    /// operation.
    pub async fn attachments(&self, server: &InstanceId) -> Result<Vec<VolumeAttachment>, VpcError> {
        self.unpaged_list(&["instances", server.as_str(), "volume_attachments"], "volume_attachments").await
    }

    /// Returns the attachment with that identifier.
    ///
    /// # Errors
    /// As for [`RegionClient::attachments`].
    pub async fn attachment(
        &self,
        server: &InstanceId,
        id: &AttachmentId,
    ) -> Result<Option<VolumeAttachment>, VpcError> {
        self.get_if_any(&["instances", server.as_str(), "volume_attachments", id.as_str()]).await
    }

    /// Attaches a volume, or adopts the existing attachment with that name and volume. If the server is
    /// deleted, the volume is deleted with it.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] if another volume's attachment has the name, and as for
    /// [`RegionClient::attachments`].
    pub async fn attach(
        &self,
        server: &InstanceId,
        name: &ResourceName,
        volume: &VolumeId,
    ) -> Result<VolumeAttachment, VpcError> {
        let body =
            json!({ "name": name, "delete_volume_on_instance_delete": true, "volume": { "id": volume } });
        let call = ApiRequest::post(&["instances", server.as_str(), "volume_attachments"], &body)?;
        let creation = Creation { kind: "attachment", name, call, patience: Patience::ATTACHMENT };
        self.create_unless(
            &creation,
            async || {
                let all = self.attachments(server).await?;
                Ok(all.into_iter().find(|attachment| attachment.name == name.as_str()))
            },
            |attachment: &VolumeAttachment| attachment.id.as_str(),
            |attachment| {
                differs(
                    "volume",
                    volume.as_str(),
                    attachment.volume.as_ref().map(|volume| volume.id.as_str()),
                )
            },
            async || self.is_held(volume).await,
        )
        .await
    }

    /// Waits until the server has the device.
    ///
    /// # Errors
    /// [`VpcError::Ended`] if it is being removed, [`VpcError::Overdue`], and as for
    /// [`RegionClient::attachments`].
    pub async fn attached(
        &self,
        server: &InstanceId,
        id: &AttachmentId,
        patience: Patience,
    ) -> Result<VolumeAttachment, VpcError> {
        self.waiting(format!("attachment {id}"), patience)
            .until(async || {
                let attachment = self.attachment(server, id).await?;
                let attachment = self.require(attachment, "attachment", id.as_str())?;
                let verdict = match attachment.status {
                    // An attachment without a device is not enough: the device appears a moment later.
                    AttachmentState::Attached if attachment.device.is_some() => Verdict::Reached,
                    ref leaving if leaving.is_leaving() => Verdict::Ended,
                    _ => Verdict::Underway,
                };
                Ok(Sighting {
                    verdict,
                    state: attachment.status.to_string(),
                    reasons: Vec::new(),
                    resource: attachment,
                })
            })
            .await
    }

    /// Detaches a volume, which is kept. Succeeds too if it is already detached or being detached.
    ///
    /// # Errors
    /// As for [`RegionClient::attachments`].
    pub async fn detach(&self, server: &InstanceId, id: &AttachmentId) -> Result<(), VpcError> {
        let path = ["instances", server.as_str(), "volume_attachments", id.as_str()];
        self.remove(&format!("server {server}"), Patience::ATTACHMENT, &path, async || {
            let current = self.attachment(server, id).await?;
            Ok(Conflict::unless(current.is_none_or(|current| current.status.is_leaving()).then_some(())))
        })
        .await
    }

    /// Returns true if a server has the volume and keeps it: until then it can be neither attached elsewhere
    /// nor deleted.
    pub(super) async fn is_held(&self, volume: &VolumeId) -> Result<bool, VpcError> {
        let Some(volume) = self.volume(volume).await? else { return Ok(true) };
        for attachment in &volume.volume_attachments {
            let Some(server) = attachment.instance.as_ref() else { continue };
            if self
                .attachment(&server.id, &attachment.id)
                .await?
                .is_some_and(|current| !current.status.is_leaving())
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits until an attachment is removed, so that its volume can be deleted.
    ///
    /// # Errors
    /// [`VpcError::Overdue`], and as for [`RegionClient::attachments`].
    pub async fn detached(
        &self,
        server: &InstanceId,
        id: &AttachmentId,
        patience: Patience,
    ) -> Result<(), VpcError> {
        self.wait_until_gone(format!("attachment {id}"), patience, async || {
            let attachment = self.attachment(server, id).await?;
            Ok(attachment.map(|attachment| (attachment.status.to_string(), Vec::new())))
        })
        .await
    }
}
