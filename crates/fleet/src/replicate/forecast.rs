//! Forecast of a job's duration and of its bottlenecks: arithmetic on IBM's published limits and on speeds
//! measured with this program.

use serde::Serialize;
use snapferry_ibmcloud::vpc::LARGEST_IMAGE;
use snapferry_ibmcloud::vpc::model::StorageGeneration;

use super::state::DiskState;
use super::steps::preflight;

/// Least bandwidth that a server's boot volume keeps of the bandwidth for volumes, in Mbit/s (IBM's
/// documentation, "Bandwidth allocation").
const BOOT_SHARE: u64 = 393;
/// Speed at which one core compresses a real boot disk at level `fast`, in MB/s (`benches/README.md`: 10 GiB
/// in 10.8 s on two cores).
const CORE_COMPRESSES: f64 = 490.0;
/// Speed at which one core decodes such an image, in MB/s of the disk (`benches/README.md`: 10 GiB in 7.8 s
/// on two cores).
const CORE_DECODES: f64 = 680.0;
/// Image bytes for each byte of the disk: 0.286 for a disk that is four fifths full (`benches/README.md`,
/// deflate fast), and some more for fuller ones.
const RATIO: f64 = 0.3;
/// Bytes in a GB as the API counts volumes: GiB.
const GB: f64 = 1_073_741_824.0;

/// Bottleneck of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// The bandwidth of the volume's profile.
    VolumeProfile,
    /// The bandwidth that this server has for its volumes.
    ServerVolumeBandwidth,
    /// The network bandwidth of this server.
    ServerNetwork,
    /// The number of this server's cores.
    Cores,
    /// The cloud, which publishes no times.
    Cloud,
}

impl Limit {
    /// Returns a text for the user that names the limit and what would help.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::VolumeProfile => "the volume's profile (--volume-profile)",
            Self::ServerVolumeBandwidth => {
                "this server's bandwidth for volumes (`ibmcloud is instance-update SERVER --total-volume-bandwidth MBPS`, then detach and attach, or a larger profile)"
            }
            Self::ServerNetwork => "this server's network (a larger profile)",
            Self::Cores => "this server's cores (a larger profile)",
            Self::Cloud => "the cloud (a guess: IBM publishes no times)",
        }
    }
}

/// Server that converts, with its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converter {
    pub cores: u64,
    /// Bandwidth for all of the server's volumes in Mbit/s, if known.
    pub volume_bandwidth: Option<u64>,
    /// Bandwidth of the server's network in Mbit/s, if known.
    pub network_bandwidth: Option<u64>,
    /// Sum of the bandwidths of the other data volumes' profiles, in Mbit/s. They keep that share even while
    /// they are idle.
    pub other_volumes: u64,
    /// Number of volumes that are read at a time.
    pub at_a_time: u64,
}

impl Converter {
    /// Returns the share in Mbit/s that one volume with a profile of `own` Mbit/s gets of `all`, the
    /// bandwidth for volumes. The boot volume's share is kept back; the rest is divided in proportion to the
    /// bandwidths of the volumes' profiles (IBM's documentation, "Bandwidth allocation").
    fn share(&self, all: u64, own: u64) -> u64 {
        let rest = all.saturating_sub(BOOT_SHARE);
        let total = self.at_a_time.max(1) * own + self.other_volumes;
        (rest * own / total.max(1)).max(1)
    }
}

/// Part of a job, with its expected duration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    pub name: &'static str,
    /// Expected duration in minutes.
    pub minutes: f64,
    /// Bottleneck of the phase.
    pub limit: Limit,
    /// Speed that the duration is computed with, in MB/s of the disk; none for phases that move no bytes.
    pub megabytes_per_second: Option<f64>,
}

/// Forecast for a whole job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Size of the disk in GB, which are GiB.
    pub capacity_gb: u64,
    /// Profile of the volume that is read.
    pub volume_profile: String,
    /// Bandwidth of that profile for this volume, in Mbit/s.
    pub volume_bandwidth: u64,
    /// Phases in the order in which they run.
    pub phases: Vec<Phase>,
    /// Expected duration of all phases, in minutes.
    pub minutes: f64,
}

/// Returns the bandwidth in Mbit/s that a profile gives a volume of `capacity` GB (IBM's documentation of
/// block storage profiles: operations a second times the size that each counts for, up to a cap).
#[must_use]
pub fn profile_bandwidth(profile: &str, capacity: u64, requested: Option<u64>) -> u64 {
    // Operations a second for each GB, size in KiB that each operation counts for, cap in MB/s.
    let (each, size, cap) = match profile {
        "general-purpose" => (3, 16, 670),
        "5iops-tier" => (5, 16, 768),
        "10iops-tier" => (10, 256, 1024),
        // The least bandwidth that can be requested.
        _ => return requested.unwrap_or(1000),
    };
    let operations = (each * capacity).max(3000);
    let megabits = operations * size * 1024 * 8 / 1_000_000;
    megabits.min(cap * 8)
}

/// Converts Mbit/s to MB/s.
fn megabytes(megabits: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a bandwidth in Mbit/s has far fewer than 53 bits")]
    let megabits = megabits as f64;
    megabits / 8.0
}

fn slowest(bounds: &[(f64, Limit)]) -> (f64, Limit) {
    bounds.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, Limit::Cloud))
}

/// Computes the forecast for a job that reads `disk` on `converter`.
#[must_use]
pub fn forecast(disk: &DiskState, profile: Option<&str>, converter: &Converter) -> Forecast {
    let (volume_profile, requested) = preflight::profile(disk, profile);
    let volume_bandwidth = profile_bandwidth(&volume_profile, disk.capacity, requested);
    #[expect(clippy::cast_precision_loss, reason = "gigabytes and cores have far fewer than 53 bits")]
    let (bytes, cores) =
        (disk.capacity as f64 * GB, converter.cores.max(1) as f64 / converter.at_a_time.max(1) as f64);
    let minutes_at = |speed: f64| bytes / (speed * 1e6) / 60.0;
    let mut reading =
        vec![(megabytes(volume_bandwidth), Limit::VolumeProfile), (CORE_COMPRESSES * cores, Limit::Cores)];
    let mut checking = vec![(CORE_DECODES * cores, Limit::Cores)];
    if let Some(all) = converter.volume_bandwidth {
        reading.push((megabytes(converter.share(all, volume_bandwidth)), Limit::ServerVolumeBandwidth));
    }
    if let Some(network) = converter.network_bandwidth {
        // The network carries the image, but the speed is given in bytes of the disk.
        let network = megabytes(network / converter.at_a_time.max(1)) / RATIO;
        reading.push((network, Limit::ServerNetwork));
        checking.push((network, Limit::ServerNetwork));
    }
    let (reading, checking) = (slowest(&reading), slowest(&checking));
    let moved = |name, (speed, limit): (f64, Limit)| Phase {
        name,
        minutes: minutes_at(speed),
        limit,
        megabytes_per_second: Some(speed),
    };
    let waited = |name, minutes| Phase { name, minutes, limit: Limit::Cloud, megabytes_per_second: None };
    #[expect(clippy::cast_precision_loss, reason = "gigabytes have far fewer than 53 bits")]
    let gigabytes = disk.capacity as f64;
    let first_snapshot = if disk.generation == StorageGeneration::FIRST { 0.05 } else { 0.02 };
    let mut phases = vec![
        waited("snapshot", 1.0 + gigabytes * first_snapshot),
        waited("volume and attachment", 1.5),
        moved("convert", reading),
        moved("read back", checking),
        waited("detach and delete", 1.0),
    ];
    if disk.capacity <= LARGEST_IMAGE {
        phases.push(waited("import", 2.0 + gigabytes * 0.05));
    }
    let minutes = phases.iter().map(|phase| phase.minutes).sum();
    Forecast { capacity_gb: disk.capacity, volume_profile, volume_bandwidth, phases, minutes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(capacity: u64, generation: StorageGeneration) -> DiskState {
        DiskState { capacity, generation, operating_system: None, resource_group: None }
    }

    #[test]
    fn profiles_give_what_ibm_publishes() {
        // 100 GB of general purpose: 3000 operations of 16 KiB are 393 Mbit/s; the fastest tier gives 16
        // times that.
        assert_eq!(profile_bandwidth("general-purpose", 100, None), 393);
        assert_eq!(profile_bandwidth("10iops-tier", 100, None), 6291);
        assert_eq!(profile_bandwidth("10iops-tier", 400, None), 8192);
        assert_eq!(profile_bandwidth("sdp", 100, Some(8192)), 8192);
        assert_eq!(profile_bandwidth("sdp", 50, None), 1000);
    }

    #[test]
    fn the_slowest_of_all_limits_counts() {
        let convert = |converter: &Converter, profile| {
            let forecast = forecast(&disk(100, StorageGeneration::FIRST), profile, converter);
            let phase =
                forecast.phases.iter().find(|phase| phase.name == "convert").cloned().expect("a conversion");
            assert!(forecast.minutes > phase.minutes);
            (phase.limit, phase.minutes)
        };
        let small = Converter {
            cores: 2,
            volume_bandwidth: Some(1000),
            network_bandwidth: Some(3000),
            other_volumes: 0,
            at_a_time: 1,
        };
        let (limit, minutes) = convert(&small, None);
        assert_eq!(limit, Limit::ServerVolumeBandwidth);
        // 100 GiB at 607 Mbit/s.
        assert!((23.0..24.0).contains(&minutes), "{minutes}");
        assert_eq!(convert(&small, Some("general-purpose")).0, Limit::VolumeProfile);
        assert_eq!(
            convert(&Converter { volume_bandwidth: Some(20_000), cores: 1, ..small }, None).0,
            Limit::Cores
        );
        let thin = Converter { cores: 16, volume_bandwidth: None, network_bandwidth: Some(500), ..small };
        assert_eq!(convert(&thin, None).0, Limit::ServerNetwork);
        // Two at a time get 303 Mbit/s each; beside a scratch volume with the same profile, 202.
        let (_, minutes) = convert(&Converter { at_a_time: 2, ..small }, None);
        assert!((47.0..48.0).contains(&minutes), "{minutes}");
        let (_, minutes) = convert(&Converter { at_a_time: 2, other_volumes: 6291, ..small }, None);
        assert!((70.0..72.0).contains(&minutes), "{minutes}");
    }

    #[test]
    fn what_no_image_can_hold_is_not_imported() {
        let converter = Converter {
            cores: 2,
            volume_bandwidth: None,
            network_bandwidth: None,
            other_volumes: 0,
            at_a_time: 1,
        };
        let has_import = |capacity| {
            forecast(&disk(capacity, StorageGeneration::FIRST), None, &converter)
                .phases
                .iter()
                .any(|p| p.name == "import")
        };
        assert!(has_import(LARGEST_IMAGE) && !has_import(LARGEST_IMAGE + 1));
    }
}
