//! Dispatch of a region's operations to the functions that implement them.

use super::config::RegionConfig;
use super::jobs::Job;
use super::request::{ApiError, ApiRequest, ApiResponse};
use super::route::RegionOperation as Op;
use super::state::Region;

impl Region {
    pub(super) fn dispatch(
        &mut self,
        operation: Op,
        request: &ApiRequest,
        config: &RegionConfig,
        jobs: &mut Vec<Job>,
    ) -> Result<ApiResponse, ApiError> {
        match operation {
            Op::ListInstances => self.list_instances(request),
            Op::CreateInstance => self.create_instance(request, config, jobs),
            Op::GetInstance => self.get_instance(request),
            Op::UpdateInstance => self.update_instance(request),
            Op::DeleteInstance => self.delete_instance(request, config),
            Op::CreateInstanceAction => self.act_on_instance(request, config),
            Op::ListAttachments => self.list_attachments(request),
            Op::CreateAttachment => self.create_attachment(request, config),
            Op::GetAttachment => self.get_attachment(request),
            Op::DeleteAttachment => self.delete_attachment(request, config),
            Op::ListVolumes => self.list_volumes(request),
            Op::CreateVolume => self.create_volume(request, config, jobs),
            Op::GetVolume => self.get_volume(request),
            Op::UpdateVolume => self.update_volume(request),
            Op::DeleteVolume => self.delete_volume(request, config),
            Op::ListSnapshots => self.list_snapshots(request),
            Op::CreateSnapshot => self.create_snapshot(request, config, jobs),
            Op::DeleteSnapshots => self.delete_snapshots(request, config),
            Op::GetSnapshot => self.get_snapshot(request),
            Op::UpdateSnapshot => self.update_snapshot(request),
            Op::DeleteSnapshot => self.delete_snapshot(request, config),
            Op::ListClones => self.list_clones(request),
            Op::GetClone => self.get_clone(request),
            Op::CreateClone => self.create_clone(request, config),
            Op::DeleteClone => self.delete_clone(request),
            Op::ListImages => self.list_images(request),
            Op::CreateImage => self.create_image(request, config, jobs),
            Op::GetImage => self.get_image(request),
            Op::UpdateImage => self.update_image(request),
            Op::DeleteImage => self.delete_image(request, config),
            Op::DeprecateImage => self.age_image(request, "deprecated"),
            Op::ObsoleteImage => self.age_image(request, "obsolete"),
            Op::ListExportJobs => self.list_exports(request),
            Op::CreateExportJob => self.create_export(request, config, jobs),
            Op::GetExportJob => self.get_export(request),
            Op::DeleteExportJob => self.delete_export(request, config),
            Op::ListOperatingSystems => self.catalog.list_operating_systems(request),
            Op::GetOperatingSystem => self.catalog.get_operating_system(request),
            Op::ListZones => self.catalog.list_zones(request),
            Op::ListVpcs => self.catalog.list_vpcs(request),
            Op::ListSubnets => self.catalog.list_subnets(request),
            Op::ListKeys => self.catalog.list_keys(request),
            Op::ListSecurityGroups => self.catalog.list_security_groups(request),
            Op::ListInstanceProfiles => self.catalog.list_instance_profiles(request),
            Op::ListVolumeProfiles => self.catalog.list_volume_profiles(request),
            _ => Err(ApiError::new(404, "invalid_route", "The requested URL does not exist.")),
        }
    }
}
