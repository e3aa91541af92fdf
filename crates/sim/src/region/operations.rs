//! Dispatch of a region's operations to the functions that implement them.

use super::ask::{Answer, Ask, Refused};
use super::config::RegionConfig;
use super::jobs::Job;
use super::route::RegionOperation as Op;
use super::world::Region;

impl Region {
    pub(super) fn dispatch(
        &mut self,
        operation: Op,
        ask: &Ask,
        config: &RegionConfig,
        jobs: &mut Vec<Job>,
    ) -> Result<Answer, Refused> {
        match operation {
            Op::ListInstances => self.list_instances(ask),
            Op::CreateInstance => self.create_instance(ask, config, jobs),
            Op::GetInstance => self.get_instance(ask),
            Op::UpdateInstance => self.update_instance(ask),
            Op::DeleteInstance => self.delete_instance(ask, config),
            Op::CreateInstanceAction => self.act_on_instance(ask, config),
            Op::ListAttachments => self.list_attachments(ask),
            Op::CreateAttachment => self.create_attachment(ask, config),
            Op::GetAttachment => self.get_attachment(ask),
            Op::DeleteAttachment => self.delete_attachment(ask, config),
            Op::ListVolumes => self.list_volumes(ask),
            Op::CreateVolume => self.create_volume(ask, config, jobs),
            Op::GetVolume => self.get_volume(ask),
            Op::UpdateVolume => self.update_volume(ask),
            Op::DeleteVolume => self.delete_volume(ask, config),
            Op::ListSnapshots => self.list_snapshots(ask),
            Op::CreateSnapshot => self.create_snapshot(ask, config, jobs),
            Op::DeleteSnapshots => self.delete_snapshots(ask, config),
            Op::GetSnapshot => self.get_snapshot(ask),
            Op::UpdateSnapshot => self.update_snapshot(ask),
            Op::DeleteSnapshot => self.delete_snapshot(ask, config),
            Op::ListClones => self.list_clones(ask),
            Op::GetClone => self.get_clone(ask),
            Op::CreateClone => self.create_clone(ask, config),
            Op::DeleteClone => self.delete_clone(ask),
            Op::ListImages => self.list_images(ask),
            Op::CreateImage => self.create_image(ask, config, jobs),
            Op::GetImage => self.get_image(ask),
            Op::UpdateImage => self.update_image(ask),
            Op::DeleteImage => self.delete_image(ask, config),
            Op::DeprecateImage => self.age_image(ask, "deprecated"),
            Op::ObsoleteImage => self.age_image(ask, "obsolete"),
            Op::ListExportJobs => self.list_exports(ask),
            Op::CreateExportJob => self.create_export(ask, config, jobs),
            Op::GetExportJob => self.get_export(ask),
            Op::DeleteExportJob => self.delete_export(ask, config),
            Op::ListOperatingSystems => self.furniture.list_operating_systems(ask),
            Op::GetOperatingSystem => self.furniture.get_operating_system(ask),
            Op::ListZones => self.furniture.list_zones(ask),
            Op::ListVpcs => self.furniture.list_vpcs(ask),
            Op::ListSubnets => self.furniture.list_subnets(ask),
            Op::ListKeys => self.furniture.list_keys(ask),
            Op::ListSecurityGroups => self.furniture.list_security_groups(ask),
            Op::ListInstanceProfiles => self.furniture.list_instance_profiles(ask),
            Op::ListVolumeProfiles => self.furniture.list_volume_profiles(ask),
            _ => Err(Refused::new(404, "invalid_route", "The requested URL does not exist.")),
        }
    }
}
