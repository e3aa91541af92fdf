//! Programs of others that judge our images. One that is missing skips a test loudly, or fails it in CI.

use std::path::Path;
use std::process::Command;

use super::skip::has_oracle;

/// QEMU's own tool.
#[derive(Clone, Copy, Debug)]
pub struct QemuImg(());

impl QemuImg {
    /// The tool, where the machine has it; else the test is skipped as [`has_oracle`] does it.
    #[must_use]
    pub fn find() -> Option<Self> {
        has_oracle("qemu-img").then_some(Self(()))
    }

    /// What the tool answers: exit code 0, or its words.
    ///
    /// # Errors
    /// With everything that it printed, when it did not end with 0.
    pub fn run(self, arguments: &[&str], files: &[&Path]) -> Result<String, String> {
        let answer =
            Command::new("qemu-img").args(arguments).args(files).output().map_err(|why| why.to_string())?;
        let printed =
            [answer.stdout, answer.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        if answer.status.success() { Ok(printed) } else { Err(format!("{}: {printed}", answer.status)) }
    }

    /// Whether `image` passes `qemu-img check`: nothing corrupt, nothing leaked.
    ///
    /// # Errors
    /// With what the tool found.
    pub fn check(self, image: &Path) -> Result<(), String> {
        self.run(&["check", "-f", "qcow2"], &[image]).map(drop)
    }

    /// Whether `image` has the same content as the raw disk, and the same size in sectors.
    ///
    /// # Errors
    /// With the first difference.
    pub fn compare(self, disk: &Path, image: &Path) -> Result<(), String> {
        // A longer image is "identical" to qemu-img as long as the rest is zero.
        let (raw, qcow2) = (self.virtual_size("raw", disk)?, self.virtual_size("qcow2", image)?);
        if raw != qcow2 {
            return Err(format!("the disk has {raw} bytes, the image {qcow2}"));
        }
        self.run(&["compare", "-f", "raw", "-F", "qcow2"], &[disk, image]).map(drop)
    }

    fn virtual_size(self, format: &str, image: &Path) -> Result<u64, String> {
        let answer = self.run(&["info", "--output=json", "-f", format], &[image])?;
        let answer: serde_json::Value =
            serde_json::from_str(&answer).map_err(|why| format!("{why}: {answer}"))?;
        answer["virtual-size"].as_u64().ok_or_else(|| format!("no virtual-size: {answer}"))
    }
}
