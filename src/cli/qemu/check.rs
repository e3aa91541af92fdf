//! Output of `qemu-img check`.

use std::io::{self, Write};

use serde::Serialize;
use snapferry_qcow2::check::{Miscount, Report, Severity};

/// Result of the audit, with QEMU's field names. Fields that are zero are left out, except `check_errors`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Checked {
    #[serde(skip_serializing_if = "is_zero")]
    image_end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    compressed_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    total_clusters: u64,
    check_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks: u64,
    #[serde(skip_serializing_if = "is_zero")]
    allocated_clusters: u64,
    filename: String,
    format: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    fragmented_clusters: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Checked {
    /// Returns the result for the image called `filename`.
    #[must_use]
    pub fn new(filename: &str, report: &Report) -> Self {
        Self {
            image_end_offset: report.image_end,
            compressed_clusters: report.compressed_clusters,
            total_clusters: report.total_clusters,
            check_errors: report.check_errors,
            corruptions: report.corruptions,
            leaks: report.leaks,
            allocated_clusters: report.allocated_clusters,
            filename: filename.to_owned(),
            format: "qcow2",
            fragmented_clusters: report.fragmented_clusters,
        }
    }

    /// Returns QEMU's exit code: 1 if something could not be checked, whatever else was found; 2 for
    /// corruption, 3 for leaks alone.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self { check_errors: 1.., .. } => 1,
            Self { corruptions: 1.., .. } => 2,
            Self { leaks: 1.., .. } => 3,
            Self { .. } => 0,
        }
    }

    /// Writes the result as `qemu-img check` prints it on stdout.
    ///
    /// # Errors
    /// If `to` can't be written to.
    pub fn write_text(&self, to: &mut impl Write) -> io::Result<()> {
        if self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0 {
            writeln!(to, "No errors were found on the image.")?;
        }
        if self.corruptions > 0 {
            writeln!(
                to,
                "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.",
                self.corruptions
            )?;
        }
        if self.leaks > 0 {
            let words = "leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.";
            writeln!(to, "\n{} {words}", self.leaks)?;
        }
        if self.check_errors > 0 {
            writeln!(to, "\n{} internal errors have occurred during the check.", self.check_errors)?;
        }
        if self.total_clusters > 0 && self.allocated_clusters > 0 {
            let (total, allocated) = (self.total_clusters, self.allocated_clusters);
            writeln!(
                to,
                "{allocated}/{total} = {}% allocated, {}% fragmented, {}% compressed clusters",
                percent(allocated, total),
                percent(self.fragmented_clusters, allocated),
                percent(self.compressed_clusters, allocated),
            )?;
        }
        if self.image_end_offset > 0 {
            writeln!(to, "Image end offset: {}", self.image_end_offset)?;
        }
        Ok(())
    }
}

/// Returns a percentage with two decimals, rounded.
fn percent(part: u64, whole: u64) -> String {
    let hundredths = (u128::from(part) * 20_000 / u128::from(whole.max(1))).div_ceil(2);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// Writes the findings as text, as QEMU writes its own on stderr. For a wrong reference count the text is
/// QEMU's, because scripts look for it.
///
/// # Errors
/// If `to` can't be written to.
pub fn write_findings(report: &Report, to: &mut impl Write) -> io::Result<()> {
    for finding in &report.findings {
        let word = match finding.severity {
            Severity::Note => continue,
            Severity::Leak => "Leaked",
            Severity::Corruption | Severity::Hidden => "ERROR",
        };
        match finding.miscount {
            Some(Miscount { cluster, counted, used }) => {
                writeln!(to, "{word} cluster {} refcount={counted} reference={used}", cluster.0)?;
            }
            None => writeln!(to, "{word} {}", finding.message)?,
        }
    }
    Ok(())
}
