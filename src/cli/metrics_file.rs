//! Figures of one run in a file, for the textfile collector of Prometheus' node_exporter: how a run from cron
//! is watched.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Args as Group;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use snapferry_base::user_file;
use tracing::Level;

use super::command::Command;
use super::error::UsageError;
use super::exit::Code;
use super::fleet::metrics::{Format, StageLabel};
use super::log;
use super::printable::line;
use super::throughput::{STAGES, Throughput};

/// Name of the metric that outlives a failed run.
const SUCCESS: &str = "snapferry_run_success_timestamp_seconds";
/// Rights of the file: node_exporter runs as a user of its own.
const MODE: u32 = 0o644;

#[derive(Debug, Group)]
#[command(next_help_heading = "Monitoring")]
pub struct MetricsFileArgs {
    /// At the end, write this run's result and figures there, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE.prom", hide_short_help = true)]
    pub metrics_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunLabels {
    command: &'static str,
    /// Name of the file without `.prom`: the collector refuses equal series from two files.
    run: String,
}

/// Labels of a run, with a stage.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    #[prometheus(flatten)]
    run: RunLabels,
    #[prometheus(flatten)]
    stage: StageLabel,
}

/// Run whose figures are written to a file at its end. A run that panics counts as one that failed.
pub struct MetricsFile {
    path: PathBuf,
    labels: RunLabels,
    throughput: Arc<Throughput>,
    begun: Instant,
    written: bool,
}

impl MetricsFile {
    /// Prepares the file that a command names. None if it names none.
    ///
    /// # Errors
    /// If the file can't be written at the end, as far as that can be told at the start.
    pub fn of(command: &Command, throughput: &Arc<Throughput>) -> Result<Option<Self>, UsageError> {
        let (command, args) = match command {
            Command::Convert(args) => ("convert", &args.metrics_file),
            Command::Replicate(args) => ("replicate", &args.metrics_file),
            Command::Restore(args) => ("restore", &args.metrics_file),
            Command::Verify(args) => ("verify", &args.metrics_file),
            _ => return Ok(None),
        };
        args.metrics_file.as_deref().map(|path| Self::prepare(command, path, throughput)).transpose()
    }

    fn prepare(command: &'static str, path: &Path, throughput: &Arc<Throughput>) -> Result<Self, UsageError> {
        let refused = |reason: String| {
            UsageError(format!("cannot write the metrics file {}: {reason}", path.display()))
        };
        let run = match (path.file_stem(), path.extension()) {
            (Some(stem), Some(extension)) if extension == "prom" => stem.to_string_lossy().into_owned(),
            _ => {
                return Err(refused(
                    "its name has to end in .prom, because node_exporter reads no other files".to_owned(),
                ));
            }
        };
        if let Ok(found) = fs::symlink_metadata(path)
            && !found.is_file()
        {
            return Err(refused("it is no regular file".to_owned()));
        }
        let trial = hidden(path);
        File::create(&trial)
            .and_then(|_| fs::remove_file(&trial))
            .map_err(|error| refused(format!("its folder takes no file: {error}")))?;
        Ok(Self {
            path: path.to_owned(),
            labels: RunLabels { command, run },
            throughput: Arc::clone(throughput),
            begun: Instant::now(),
            written: false,
        })
    }

    /// Writes the file, for a run that ended with `code`. A failure is printed and changes nothing else: the
    /// work has its result already, and the file keeps its old times, which an alarm notices.
    pub fn write(mut self, code: Code) {
        self.write_once(code);
    }

    fn write_once(&mut self, code: Code) {
        self.written = true;
        let text = self.text(code, SystemTime::now(), self.begun.elapsed());
        if let Err(error) = replace(&self.path, &text) {
            let message = format!(
                "the metrics file {} could not be written, and shows an earlier run: {error}; this run ended with exit code {}",
                self.path.display(),
                code as u8
            );
            log::print_last(Level::ERROR, &line(&message));
        }
    }

    fn text(&self, code: Code, now: SystemTime, took: Duration) -> String {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let last_success = if code == Code::Done { now } else { self.earlier_success() };
        let gauge = |value: u64| {
            let family: Family<RunLabels, Gauge> = Family::default();
            family.get_or_create(&self.labels).set(i64::try_from(value).unwrap_or(i64::MAX));
            family
        };
        let totals = self.throughput.totals();
        let stages: Family<StageLabels, Gauge> = Family::default();
        for (stage, bytes) in STAGES.into_iter().zip(totals.bytes) {
            let labels = StageLabels { run: self.labels.clone(), stage: StageLabel { stage } };
            stages.get_or_create(&labels).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        let duration: Family<RunLabels, Gauge<f64, std::sync::atomic::AtomicU64>> = Family::default();
        duration.get_or_create(&self.labels).set(took.as_secs_f64());
        let mut registry = Registry::with_prefix("snapferry_run");
        let seconds = || Unit::Seconds;
        registry.register_with_unit("timestamp", "End of the last run", seconds(), gauge(now));
        registry.register_with_unit(
            "success_timestamp",
            "End of the last run with exit code 0; 0 if there was none",
            seconds(),
            gauge(last_success),
        );
        registry.register("exit_code", "Exit code of the last run", gauge(u64::from(code as u8)));
        registry.register_with_unit("duration", "Duration of the last run", seconds(), duration);
        registry.register_with_unit(
            "source",
            "Bytes of the source disk that the last run put into an image, holes included",
            Unit::Bytes,
            gauge(totals.source),
        );
        registry.register_with_unit(
            "stage",
            "Bytes that each stage of the last run moved",
            Unit::Bytes,
            stages,
        );
        Format::Prometheus.encode(&registry)
    }

    /// Returns the time of the last success by the file of an earlier run. 0 if the file does not show one.
    fn earlier_success(&self) -> u64 {
        let text = user_file::read_text(&self.path).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(SUCCESS)?.rsplit_once(' '));
        value.and_then(|(_, seconds)| seconds.parse().ok()).unwrap_or(0)
    }
}

impl Drop for MetricsFile {
    fn drop(&mut self) {
        if !self.written {
            self.write_once(Code::Unexpected);
        }
    }
}

/// Returns the name that the file has until it is whole: in the same folder, and of a form that no collector
/// reads.
fn hidden(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

/// Replaces the file by one with this text. A reader sees the old file or the new one, both whole.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let hidden = hidden(path);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&hidden)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(MODE))?;
        file.sync_all()?;
        fs::rename(&hidden, path)
    };
    write().inspect_err(|_| {
        // The first error is the one that counts.
        let _ = fs::remove_file(&hidden);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_in(folder: &Path) -> MetricsFile {
        MetricsFile::prepare("convert", &folder.join("web01.prom"), &Arc::default()).expect("a file")
    }

    fn value(folder: &Path, name: &str) -> String {
        let text = fs::read_to_string(folder.join("web01.prom")).expect("the file");
        let labels = "{command=\"convert\",run=\"web01\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(labels));
        line.unwrap_or_else(|| panic!("{name} is not in:\n{text}")).to_owned()
    }

    #[test]
    fn a_failure_keeps_the_time_of_the_last_success() {
        let folder = tempfile::tempdir().expect("a folder");
        file_in(folder.path()).write(Code::Done);
        let success = value(folder.path(), SUCCESS);
        assert_ne!(success, "0");
        file_in(folder.path()).write(Code::Store);
        assert_eq!(value(folder.path(), SUCCESS), success);
        assert_eq!(value(folder.path(), "snapferry_run_exit_code"), "4");
    }

    #[test]
    fn a_first_run_that_fails_has_no_success() {
        let folder = tempfile::tempdir().expect("a folder");
        file_in(folder.path()).write(Code::Source);
        assert_eq!(value(folder.path(), SUCCESS), "0");
    }

    #[test]
    fn a_run_that_panics_has_failed() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(file_in(folder.path()));
        assert_eq!(value(folder.path(), "snapferry_run_exit_code"), "1");
    }

    #[test]
    fn a_file_that_is_not_ours_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("web01.prom"), format!("{SUCCESS}{{}} many\n\u{7}")).expect("a file");
        file_in(folder.path()).write(Code::Usage);
        assert_eq!(value(folder.path(), SUCCESS), "0");
    }

    #[test]
    fn nothing_but_the_file_is_left_and_others_may_read_it() {
        let folder = tempfile::tempdir().expect("a folder");
        file_in(folder.path()).write(Code::Done);
        let names: Vec<_> =
            fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("an entry")).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let mode = names[0].metadata().expect("its rights").permissions().mode();
        assert_eq!(mode & 0o777, MODE);
    }

    #[test]
    fn bytes_stand_under_their_stages() {
        let folder = tempfile::tempdir().expect("a folder");
        file_in(folder.path()).write(Code::Done);
        let text = fs::read_to_string(folder.path().join("web01.prom")).expect("the file");
        for stage in STAGES {
            let line =
                format!("snapferry_run_stage_bytes{{command=\"convert\",run=\"web01\",stage=\"{stage}\"}} 0");
            assert!(text.contains(&line), "{line:?} is not in:\n{text}");
        }
    }

    #[test]
    fn a_name_that_no_collector_reads_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["web01.txt", "web01", ".prom"] {
            let refused = MetricsFile::prepare("convert", &folder.path().join(name), &Arc::default());
            let error = refused.err().expect("a refusal").to_string();
            assert!(error.contains("has to end in .prom"), "{error}");
        }
    }

    #[test]
    fn a_folder_in_the_files_place_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("web01.prom")).expect("a folder");
        let refused = MetricsFile::prepare("convert", &folder.path().join("web01.prom"), &Arc::default());
        let error = refused.err().expect("a refusal").to_string();
        assert!(error.ends_with("it is no regular file"), "{error}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_refused() {
        let refused = MetricsFile::prepare("convert", Path::new("/nowhere/web01.prom"), &Arc::default());
        let error = refused.err().expect("a refusal").to_string();
        assert!(error.contains("its folder takes no file: No such file or directory"), "{error}");
    }
}
