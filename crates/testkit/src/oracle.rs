//! Independent programs that check images. If a program is missing, the test is skipped with a message, or
//! fails in CI.

use std::path::Path;
use std::process::Command;

use super::skip::has_oracle;

/// QEMU's tool for images.
#[derive(Clone, Copy, Debug)]
pub struct QemuImg(());

impl QemuImg {
    /// Returns the tool if the machine has it. Otherwise skips the test as [`has_oracle`] does.
    #[must_use]
    pub fn find() -> Option<Self> {
        has_oracle("qemu-img").then_some(Self(()))
    }

    /// Runs the tool and returns its output.
    ///
    /// # Errors
    /// If the exit code is not 0, with everything that the tool printed.
    pub fn run(self, arguments: &[&str], files: &[&Path]) -> Result<String, String> {
        let output =
            Command::new("qemu-img").args(arguments).args(files).output().map_err(|err| err.to_string())?;
        let printed =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        if output.status.success() { Ok(printed) } else { Err(format!("{}: {printed}", output.status)) }
    }

    /// Checks `image` with `qemu-img check`: nothing corrupt, nothing leaked.
    ///
    /// # Errors
    /// If the check fails, with the tool's output.
    pub fn check(self, image: &Path) -> Result<(), String> {
        self.run(&["check", "-f", "qcow2"], &[image]).map(drop)
    }

    /// Checks that `image` has the same content as the raw disk, and the same size in sectors.
    ///
    /// # Errors
    /// If they differ, with the first difference.
    pub fn compare(self, disk: &Path, image: &Path) -> Result<(), String> {
        // qemu-img calls a longer image "identical" if the rest is zero.
        let (raw, qcow2) = (self.virtual_size("raw", disk)?, self.virtual_size("qcow2", image)?);
        if raw != qcow2 {
            return Err(format!("the disk has {raw} bytes, the image {qcow2}"));
        }
        self.run(&["compare", "-f", "raw", "-F", "qcow2"], &[disk, image]).map(drop)
    }

    fn virtual_size(self, format: &str, image: &Path) -> Result<u64, String> {
        let output = self.run(&["info", "--output=json", "-f", format], &[image])?;
        let output: serde_json::Value =
            serde_json::from_str(&output).map_err(|err| format!("{err}: {output}"))?;
        output["virtual-size"].as_u64().ok_or_else(|| format!("no virtual-size: {output}"))
    }
}
