//! State of the cloud, in one file that is replaced after each change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::timestamp::Timestamp;
use super::attachments::Attachment;
use super::catalog::Catalog;
use super::config::RegionConfig;
use super::exports::ExportJob;
use super::images::Image;
use super::instances::Instance;
use super::lifecycle::{Lifecycle, Turn};
use super::snapshots::Snapshot;
use super::volumes::Volume;

/// Resources by their ids.
pub(super) type ById<T> = BTreeMap<String, T>;

/// Region with all its resources.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Region {
    #[serde(rename = "furniture")]
    pub catalog: Catalog,
    pub instances: ById<Instance>,
    pub attachments: ById<Attachment>,
    pub volumes: ById<Volume>,
    pub snapshots: ById<Snapshot>,
    pub images: ById<Image>,
    pub exports: ById<ExportJob>,
}

/// State of the whole cloud: all regions, and the tags.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct CloudState {
    pub regions: BTreeMap<String, Region>,
    /// User tags of Global Tagging, by CRN.
    pub tags: BTreeMap<String, Vec<String>>,
    /// Folder of the state's file.
    #[serde(skip)]
    folder: PathBuf,
}

/// Changes that the passing of time has caused, and work that they leave to the caller.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// True if the state has changed.
    pub changed: bool,
    /// Disks of removed resources, for the caller to remove.
    pub files: Vec<PathBuf>,
    /// True if a snapshot was removed.
    snapshots_gone: bool,
}

impl CloudState {
    pub fn open(folder: &Path) -> io::Result<Self> {
        let mut cloud: Self = match fs::read(folder.join("state.json")) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(err) => return Err(err),
        };
        folder.clone_into(&mut cloud.folder);
        Ok(cloud)
    }

    /// Creates the resources that every region has from the start, and the servers of the configuration.
    pub fn seed(&mut self, config: &RegionConfig) {
        let now = Timestamp::now();
        for (number, name) in config.regions.iter().enumerate() {
            let region = self.regions.entry(name.clone()).or_default();
            region.catalog.seed(name, now);
            let own = (config.own_server.clone(), 1);
            for (server, zone) in config.other_servers.iter().chain([&own]).filter(|_| number == 0) {
                if !region.instances.values().any(|instance| instance.life.name == *server) {
                    region.add_server(name, server, *zone, now);
                }
            }
        }
    }

    /// Saves the state: writes a file under another name, and renames it. Called before the response to a
    /// change is sent.
    pub fn save(&self) -> io::Result<()> {
        let draft = self.folder.join("state.json.new");
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(draft, self.folder.join("state.json"))
    }

    pub fn region(&mut self, name: &str) -> Option<&mut Region> {
        self.regions.get_mut(name)
    }

    /// Applies every step that is due at `now`.
    pub fn advance(&mut self, now: Timestamp) -> Changes {
        let mut changes = Changes::default();
        let folder = self.folder.clone();
        for region in self.regions.values_mut() {
            region.advance(now, &folder, &mut changes);
        }
        if changes.snapshots_gone {
            self.forget_copies();
        }
        changes
    }

    /// Forgets copies of snapshots that are gone, so that they can be made again.
    fn forget_copies(&mut self) {
        let existing: BTreeSet<String> =
            self.regions.values().flat_map(|region| region.snapshots.keys().cloned()).collect();
        for snapshot in self.regions.values_mut().flat_map(|region| region.snapshots.values_mut()) {
            snapshot.copies.retain(|_, id| existing.contains(id));
        }
    }

    /// Returns the lifecycle of a resource, whatever its kind and region.
    pub fn life(&mut self, id: &str) -> Option<&mut Lifecycle> {
        self.regions.values_mut().find_map(|region| {
            let instance = region.instances.get_mut(id).map(|resource| &mut resource.life);
            instance
                .or_else(|| region.attachments.get_mut(id).map(|resource| &mut resource.life))
                .or_else(|| region.volumes.get_mut(id).map(|resource| &mut resource.life))
                .or_else(|| region.snapshots.get_mut(id).map(|resource| &mut resource.life))
                .or_else(|| region.images.get_mut(id).map(|resource| &mut resource.life))
                .or_else(|| region.exports.get_mut(id).map(|resource| &mut resource.life))
        })
    }
}

/// Applies the due step of every resource in the list, removes those that are gone, and passes them to
/// `on_removed`. Returns true if anything has changed.
fn advance_all<T>(
    resources: &mut ById<T>,
    now: Timestamp,
    life: impl Fn(&mut T) -> &mut Lifecycle,
    mut on_removed: impl FnMut(T),
) -> bool {
    let mut changed = false;
    let mut ended = Vec::new();
    for (id, resource) in resources.iter_mut() {
        match life(resource).apply_due(now) {
            None => continue,
            Some(Turn::Into(_)) => {}
            Some(Turn::Gone) => ended.push(id.clone()),
        }
        changed = true;
    }
    for id in ended {
        if let Some(resource) = resources.remove(&id) {
            on_removed(resource);
        }
    }
    changed
}

/// Removes the resources with these ids from the list, and returns them.
fn take<T>(resources: &mut ById<T>, ids: Vec<String>) -> ById<T> {
    ids.into_iter().filter_map(|id| resources.remove_entry(&id)).collect()
}

impl Region {
    fn advance(&mut self, now: Timestamp, folder: &Path, changes: &mut Changes) {
        let files = &mut changes.files;
        let attachments = advance_all(&mut self.attachments, now, |resource| &mut resource.life, |_| {});
        let mut lost_servers = Vec::new();
        let others = [
            advance_all(
                &mut self.instances,
                now,
                |resource| &mut resource.life,
                |resource| lost_servers.push(resource),
            ),
            advance_all(
                &mut self.volumes,
                now,
                |resource| &mut resource.life,
                |resource| files.push(resource.file(folder)),
            ),
            advance_all(&mut self.exports, now, |resource| &mut resource.life, |_| {}),
        ];
        for server in &lost_servers {
            self.forget_server(server, now);
        }
        // A snapshot stays while a volume is filled from it.
        let filling: Vec<String> = self
            .volumes
            .values()
            .filter(|volume| volume.hydrated_at > now || volume.life.work > 0)
            .filter_map(|volume| volume.source_snapshot.clone())
            .collect();
        let before = self.snapshots.len();
        let mut waiting = take(&mut self.snapshots, filling);
        let snapshots = advance_all(
            &mut self.snapshots,
            now,
            |resource| &mut resource.life,
            |resource| files.push(resource.file(folder)),
        );
        self.snapshots.append(&mut waiting);
        changes.snapshots_gone |= before != self.snapshots.len();
        // An image stays while a boot volume is filled from it.
        let booting = self.images_in_use();
        let mut waiting = take(&mut self.images, booting);
        let on_removed = |resource: Image| files.push(Image::file_path(folder, &resource.life.id));
        let images = advance_all(&mut self.images, now, |resource| &mut resource.life, on_removed);
        self.images.append(&mut waiting);
        changes.changed |= attachments || snapshots || images || others.contains(&true);
    }

    /// Returns the images that boot volumes are being filled from.
    fn images_in_use(&self) -> Vec<String> {
        let is_filled = |id: &str| self.volumes.get(id).is_some_and(|volume| volume.life.work > 0);
        let boots =
            self.attachments.values().filter(|attachment| attachment.boot && is_filled(&attachment.volume));
        boots.filter_map(|attachment| self.instances.get(&attachment.instance)?.image.clone()).collect()
    }
}
