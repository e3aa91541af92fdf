//! Attached volumes as the server sees them: links in a by-id folder. They lead to loop devices if the
//! process runs as root, and to the volumes' files if not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::timestamp::Timestamp;
use super::config::RegionConfig;
use super::state::CloudState;

/// Target of one link.
#[derive(Debug)]
struct Linked {
    /// Loop device, if the link leads to one.
    device: Option<PathBuf>,
}

/// All links of attached volumes.
#[derive(Debug)]
pub(super) struct Devices {
    linked: BTreeMap<PathBuf, Linked>,
}

/// Returns the by-id folder of the server that snapferry would run on.
pub(super) fn own_folder(folder: &Path) -> PathBuf {
    folder.join("by-id")
}

/// Returns the by-id folder of another server.
pub(super) fn folder_of(folder: &Path, server: &str) -> PathBuf {
    folder.join("servers").join(server).join("by-id")
}

impl Devices {
    /// Begins without links: removes those that a killed process has left, and detaches their loop devices.
    pub fn new(folder: &Path) -> Self {
        let others = fs::read_dir(folder.join("servers")).into_iter().flatten().flatten();
        let folders = others.map(|server| server.path().join("by-id")).chain([own_folder(folder)]);
        for entry in folders.flat_map(|links| fs::read_dir(links).into_iter().flatten().flatten()) {
            if let Ok(target) = fs::read_link(entry.path())
                && target.starts_with("/dev")
            {
                detach(&target);
            }
            let _gone_already = fs::remove_file(entry.path());
        }
        Self { linked: BTreeMap::new() }
    }

    /// Creates and removes links until they match the attachments.
    pub fn sync(&mut self, cloud: &CloudState, config: &RegionConfig) {
        let now = Timestamp::now();
        let mut expected = BTreeMap::new();
        for region in cloud.regions.values() {
            // Boot volumes have no links here: a server reaches its system disk by other ones.
            let data = region
                .attachments
                .values()
                .filter(|attachment| !attachment.boot && attachment.linked_from <= now);
            for attachment in
                data.filter(|attachment| matches!(attachment.life.state.as_str(), "attached" | "detaching"))
            {
                let server =
                    region.instances.get(&attachment.instance).map(|server| server.life.name.as_str());
                let (Some(volume), Some(server)) = (region.volumes.get(&attachment.volume), server) else {
                    continue;
                };
                let own = server == config.own_server;
                let links = if own { own_folder(&config.folder) } else { folder_of(&config.folder, server) };
                expected.insert(links.join(attachment.link()), volume.file(&config.folder));
            }
        }
        let gone: Vec<PathBuf> =
            self.linked.keys().filter(|link| !expected.contains_key(*link)).cloned().collect();
        for link in gone {
            self.unlink(&link);
        }
        for (link, file) in expected {
            if !self.linked.contains_key(&link) {
                self.link(link, &file);
            }
        }
    }

    fn link(&mut self, link: PathBuf, file: &Path) {
        if let Some(Err(err)) = link.parent().map(fs::create_dir_all) {
            tracing::warn!(%err, link = %link.display(), "a server's folder of devices can't be made");
        }
        let device = if rustix::process::geteuid().is_root() { attach(file) } else { None };
        let target = device.clone().unwrap_or_else(|| file.to_owned());
        if let Err(err) = symlink(&target, &link) {
            tracing::warn!(%err, link = %link.display(), "a simulated volume can't be linked");
        }
        self.linked.insert(link, Linked { device });
    }

    fn unlink(&mut self, link: &Path) {
        if let Err(err) = fs::remove_file(link) {
            tracing::warn!(%err, link = %link.display(), "a simulated volume's link was gone already");
        }
        if let Some(Linked { device: Some(device) }) = self.linked.remove(link) {
            detach(&device);
        }
    }

    /// Removes all links, and detaches their loop devices.
    pub fn release(&mut self) {
        for link in self.linked.keys().cloned().collect::<Vec<PathBuf>>() {
            self.unlink(&link);
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.release();
    }
}

/// Returns a command for `losetup`, which may be in a folder that a user's PATH does not have.
fn losetup() -> Command {
    let mut command = Command::new("losetup");
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

/// Attaches a loop device to `file`; returns `None` if that fails.
fn attach(file: &Path) -> Option<PathBuf> {
    let output = losetup().args(["--find", "--show", "--direct-io=on"]).arg(file).output();
    match output {
        Ok(output) if output.status.success() => {
            Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
        }
        Ok(output) => {
            tracing::warn!("no loop device: {}", String::from_utf8_lossy(&output.stderr).trim());
            None
        }
        Err(err) => {
            tracing::warn!(%err, "no loop device: losetup can't be run");
            None
        }
    }
}

fn detach(device: &Path) {
    match losetup().arg("--detach").arg(device).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            tracing::warn!("{} stays: {}", device.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Err(err) => tracing::warn!(%err, "{} stays", device.display()),
    }
}
