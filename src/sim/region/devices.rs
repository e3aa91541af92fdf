//! Attached volumes as the server sees them: links under a by-id folder, to loop devices where we are root, to the files themselves where not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::config::RegionConfig;
use super::life::Millis;
use super::world::World;

/// What is behind one link.
#[derive(Debug)]
struct Linked {
    /// The loop device, if it is one.
    device: Option<PathBuf>,
}

/// All links.
#[derive(Debug)]
pub(super) struct Devices {
    folder: PathBuf,
    linked: BTreeMap<String, Linked>,
}

impl Devices {
    /// Begins without any: what a killed predecessor has left is taken away.
    pub fn new(folder: &Path) -> Self {
        let links = folder.join("by-id");
        for entry in fs::read_dir(&links).into_iter().flatten().flatten() {
            if let Ok(target) = fs::read_link(entry.path())
                && target.starts_with("/dev")
            {
                detach(&target);
            }
            let _gone_already = fs::remove_file(entry.path());
        }
        Self { folder: links, linked: BTreeMap::new() }
    }

    /// Makes the links those that the world has by now.
    pub fn follow(&mut self, world: &World, config: &RegionConfig) {
        let now = Millis::now();
        let mut wanted = BTreeMap::new();
        for region in world.regions.values() {
            // Boot volumes are the servers' own; there the system is seen by its other links.
            let data = region.attachments.values().filter(|attachment| !attachment.boot && attachment.linked_from <= now);
            for attachment in data.filter(|attachment| matches!(attachment.life.state.as_str(), "attached" | "detaching")) {
                if let Some(volume) = region.volumes.get(&attachment.volume) {
                    wanted.insert(attachment.link(), volume.file(&config.folder));
                }
            }
        }
        let gone: Vec<String> = self.linked.keys().filter(|link| !wanted.contains_key(*link)).cloned().collect();
        for link in gone {
            self.unlink(&link);
        }
        for (link, file) in wanted {
            if !self.linked.contains_key(&link) {
                self.link(link, &file);
            }
        }
    }

    fn link(&mut self, link: String, file: &Path) {
        let device = if rustix::process::geteuid().is_root() { attach(file) } else { None };
        let target = device.clone().unwrap_or_else(|| file.to_owned());
        if let Err(err) = symlink(&target, self.folder.join(&link)) {
            tracing::warn!(%err, link, "a simulated volume can't be linked");
        }
        self.linked.insert(link, Linked { device });
    }

    fn unlink(&mut self, link: &str) {
        if let Err(err) = fs::remove_file(self.folder.join(link)) {
            tracing::warn!(%err, link, "a simulated volume's link was gone already");
        }
        if let Some(Linked { device: Some(device) }) = self.linked.remove(link) {
            detach(&device);
        }
    }

    /// Takes all links away.
    pub fn release(&mut self) {
        for link in self.linked.keys().cloned().collect::<Vec<_>>() {
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
        Ok(output) if output.status.success() => Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())),
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
        Ok(output) => tracing::warn!("{} stays: {}", device.display(), String::from_utf8_lossy(&output.stderr).trim()),
        Err(err) => tracing::warn!(%err, "{} stays", device.display()),
    }
}
