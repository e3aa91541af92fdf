//! `snapferry check`: checks the tables of an image, and its data on request.

use std::io::{self, Write};
use std::sync::Arc;

use clap::Args as Group;
use serde::Serialize;
use snapferry_base::clock::SystemClock;
use snapferry_base::units::ByteCount;
use snapferry_engine::image::plan::Options;
use snapferry_engine::verify::{Finding, Sha256Wanted, Verdict, Verification};
use snapferry_qcow2::check::{Report, Severity, check};
use snapferry_qcow2::{CorruptPolicy, Image, Limits};

use super::{Format, Inspection};
use crate::cli::error::CommandResult;
use crate::cli::error::UsageError;
use crate::cli::exit::Code;
use crate::cli::image::ImageArgs;
use crate::cli::printable::{self, Form};
use crate::cli::qemu;
use crate::cli::qemu::check::Checked;
use crate::cli::session::Session;

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry check web01.qcow2\n  snapferry check s3://images/web01.qcow2 --data --json"
)]
pub struct CheckArgs {
    /// Decode every cluster too
    #[arg(long)]
    pub data: bool,

    /// Refuse an image of a larger disk
    #[arg(long, value_name = "SIZE", default_value = "64T")]
    pub max_size: ByteCount,

    /// Print JSON: the fields of `qemu-img check --output=json`, and others of snapferry
    #[arg(long)]
    pub json: bool,

    // Last, because its heading in the help applies to all options that follow.
    #[command(flatten)]
    pub image: ImageArgs,
}

/// Output with `--json`: QEMU's own fields, and others.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct CheckJson<'a> {
    #[serde(flatten)]
    checked: &'a Checked,
    errors_beyond_qemu: u64,
    trailing_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    undecodable_clusters: Option<u64>,
    findings: Vec<String>,
}

pub fn run(args: &CheckArgs, session: &Session) -> CommandResult<Code> {
    let inspection = Inspection::start(session)?;
    let found = inspection.find(args.image.name()?, &args.image.store)?;
    if found.format == Format::Raw {
        return Err(
            UsageError(format!("{} is no qcow2 image: a raw disk has nothing to check", found.name)).into()
        );
    }
    // An image that is marked as corrupt is just the one to check.
    let limits = Limits { marked_corrupt: CorruptPolicy::Read, largest_disk: args.max_size };
    let image = Image::open(found.file(), &limits)?;
    let report = check(found.file(), &image, &session.cancel)?;
    let decoded = if args.data && report.corruptions == 0 && report.hidden == 0 {
        let verification = Verification {
            file: found.file(),
            location: found.location,
            manifest: None,
            sha256: Sha256Wanted::No,
            against: None,
            limits,
            options: Options::default(),
            clock: &SystemClock,
            cancel: session.cancel.clone(),
            counters: Arc::default(),
        };
        Some(verification.run(&|_| {})?)
    } else {
        None
    };
    let checked = Checked::new(&found.name.to_string(), &report);
    let mut out = printable::out_as(Form::of(args.json));
    if args.json {
        qemu::write_json(&report_json(&checked, &report, decoded.as_ref()), &mut out)?;
    } else {
        write_for_people(args, &checked, &report, decoded.as_ref(), &mut out)?;
    }
    let is_good = report.is_clean() && decoded.is_none_or(|verdict| verdict.good);
    Ok(if is_good { Code::Done } else { Code::Image })
}

/// Returns a text for each cluster that fails to decode.
fn undecodable(verdict: &Verdict) -> impl Iterator<Item = String> + '_ {
    verdict.findings.iter().map(Finding::to_string)
}

fn report_json<'a>(checked: &'a Checked, report: &Report, decoded: Option<&Verdict>) -> CheckJson<'a> {
    let findings = report.findings.iter().map(|finding| finding.message.clone());
    CheckJson {
        checked,
        errors_beyond_qemu: report.hidden,
        trailing_bytes: report.trailing,
        undecodable_clusters: decoded
            .map(|verdict| snapferry_base::units::to_u64(verdict.findings.len()) + verdict.more_findings),
        findings: findings.chain(decoded.into_iter().flat_map(undecodable)).collect(),
    }
}

/// Returns the number of findings that are counted but have no text. Notes have a text, and are not counted.
fn unlisted(report: &Report) -> u64 {
    let listed = report.findings.iter().filter(|finding| finding.severity != Severity::Note).count();
    (report.corruptions + report.leaks + report.hidden).saturating_sub(snapferry_base::units::to_u64(listed))
}

fn write_for_people(
    args: &CheckArgs,
    checked: &Checked,
    report: &Report,
    decoded: Option<&Verdict>,
    to: &mut impl Write,
) -> io::Result<()> {
    for finding in &report.findings {
        let label = match finding.severity {
            Severity::Note => "note",
            Severity::Leak => "leak",
            Severity::Corruption | Severity::Hidden => "wrong",
        };
        writeln!(to, "{label:<6} {}", finding.message)?;
    }
    let more = unlisted(report);
    if more > 0 {
        writeln!(to, "... and {more} more")?;
    }
    for finding in decoded.into_iter().flat_map(undecodable) {
        writeln!(to, "wrong  {finding}")?;
    }
    checked.write_text(to)?;
    if report.hidden > 0 {
        writeln!(
            to,
            "{} errors that QEMU's audit does not look for were found on the image.",
            report.hidden
        )?;
    }
    match decoded {
        Some(Verdict { good: true, clusters, .. }) => writeln!(to, "All {clusters} stored clusters decode."),
        Some(Verdict { findings, more_findings, .. }) => {
            writeln!(
                to,
                "{} clusters don't decode.",
                snapferry_base::units::to_u64(findings.len()) + more_findings
            )
        }
        None if args.data => writeln!(to, "No cluster was decoded: the tables are not to be trusted."),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use snapferry_qcow2::check;

    use super::*;

    #[test]
    fn a_note_is_none_of_the_findings_that_are_told() {
        let finding = |severity| check::Finding { severity, message: "x".to_owned(), miscount: None };
        let findings = vec![finding(Severity::Note), finding(Severity::Leak), finding(Severity::Corruption)];
        let report = Report { corruptions: 3, leaks: 1, findings, ..Report::default() };
        assert_eq!(unlisted(&report), 2);
        assert_eq!(unlisted(&Report { corruptions: 1, ..report }), 0);
    }
}
