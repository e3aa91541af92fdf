//! Attached volumes as the server sees them: links under a by-id folder, to loop devices where we are root, to the files themselves where not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::moment::Moment;
use super::config::RegionConfig;
use super::world::World;

/// What is behind one link.
#[derive(Debug)]
struct Linked {
    /// The loop device, if it is one.
    device: Option<PathBuf>,
}

/// All links, by their paths.
#[derive(Debug)]
pub(super) struct Devices {
    linked: BTreeMap<PathBuf, Linked>,
}

/// Where the volumes of the server that snapferry would run on turn up.
pub(super) fn own_folder(folder: &Path) -> PathBuf {
    folder.join("by-id")
}

/// Where those of another server do.
pub(super) fn folder_of(folder: &Path, server: &str) -> PathBuf {
    folder.join("servers").join(server).join("by-id")
}

impl Devices {
    /// Begins without any: what a killed predecessor has left is taken away.
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

    /// Makes the links those that the world has by now.
    pub fn follow(&mut self, world: &World, config: &RegionConfig) {
        let now = Moment::now();
        let mut wanted = BTreeMap::new();
        for region in world.regions.values() {
            // Boot volumes are the servers' own; there the system is seen by its other links.
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
                wanted.insert(links.join(attachment.link()), volume.file(&config.folder));
            }
        }
        let gone: Vec<PathBuf> =
            self.linked.keys().filter(|link| !wanted.contains_key(*link)).cloned().collect();
        for link in gone {
            self.unlink(&link);
        }
        for (link, file) in wanted {
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

    /// Takes all links away.
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

/// A tool that lives where a user's PATH may not look.
fn losetup() -> Command {
    let mut command = Command::new("losetup");
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

/// A loop device on `file`; none where the machine gives none.
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
            tracing::warn!("{} stays: {}", device.display(), String::from_utf8_lossy(&output.stderr).trim())
        }
        Err(err) => tracing::warn!(%err, "{} stays", device.display()),
    }
}
