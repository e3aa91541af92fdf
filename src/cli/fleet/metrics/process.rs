//! Figures of this process under the names that Prometheus' own client libraries use, so that dashboards for
//! any process show them. What `/proc` does not report is left out.

use std::fs;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use snapferry_base::units::to_u64;

use super::FloatGauge;

/// Fields of `/proc/self/stat`, counted from the one after the command's name (proc_pid_stat(5)).
mod field {
    /// `utime` and `stime`, in clock ticks.
    pub const PROCESSOR_TIME: [usize; 2] = [11, 12];
    /// `starttime`, in clock ticks since the system's start.
    pub const START: usize = 19;
    /// `vsize`, in bytes.
    pub const VIRTUAL: usize = 20;
    /// `rss`, in pages.
    pub const RESIDENT: usize = 21;
}

/// Figures of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stat {
    processor_seconds: f64,
    /// Time between the system's start and the process's.
    started_after: f64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

impl Stat {
    /// Parses `/proc/self/stat`. None if it has another form.
    fn parse(stat: &str, ticks_per_second: f64, page: u64) -> Option<Self> {
        // The command's name stands in brackets, and may hold any character, brackets and blanks included.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let in_seconds = |index: usize| Some(fields.get(index)?.parse::<f64>().ok()? / ticks_per_second);
        let [user, system] = field::PROCESSOR_TIME;
        Some(Self {
            processor_seconds: in_seconds(user)? + in_seconds(system)?,
            started_after: in_seconds(field::START)?,
            virtual_bytes: number(field::VIRTUAL)?,
            resident_bytes: number(field::RESIDENT)?.saturating_mul(page),
        })
    }
}

/// Adds the figures of this process to a registry.
pub fn register(registry: &mut Registry) {
    let registry = registry.sub_registry_with_prefix("process");
    let bytes = |bytes: u64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        gauge
    };
    let ticks = u32::try_from(clock_ticks_per_second()).map_or(100.0, f64::from);
    let stat = fs::read_to_string("/proc/self/stat").ok();
    if let Some(stat) = stat.and_then(|stat| Stat::parse(&stat, ticks, to_u64(page_size()))) {
        let processor: Counter<f64, AtomicU64> = Counter::default();
        processor.inc_by(stat.processor_seconds);
        registry.register_with_unit("cpu", "Processor time, user and system", Unit::Seconds, processor);
        registry.register_with_unit(
            "resident_memory",
            "Resident memory",
            Unit::Bytes,
            bytes(stat.resident_bytes),
        );
        registry.register_with_unit(
            "virtual_memory",
            "Virtual memory",
            Unit::Bytes,
            bytes(stat.virtual_bytes),
        );
        if let Some(booted) = boot_time() {
            let start = FloatGauge::default();
            start.set(booted + stat.started_after);
            registry.register_with_unit(
                "start_time",
                "Start of the process, since 1970",
                Unit::Seconds,
                start,
            );
        }
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // Reading the folder takes a file descriptor too.
        registry.register("open_fds", "Open files", bytes(to_u64(files.count()).saturating_sub(1)));
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        registry.register("max_fds", "Files that may be open", bytes(most));
    }
}

/// Returns the time of the system's start, in seconds since 1970.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 12345 987654 77 \
                    18446744073709551615 1";
        let expected = Stat {
            processor_seconds: 3.0,
            started_after: 123.45,
            virtual_bytes: 987_654,
            resident_bytes: 77 * 4096,
        };
        assert_eq!(Stat::parse(stat, 100.0, 4096), Some(expected));
    }

    #[test]
    fn another_form_is_no_figure() {
        assert_eq!(Stat::parse("42 (snapferry) S 1", 100.0, 4096), None);
        assert_eq!(Stat::parse("", 100.0, 4096), None);
    }
}
