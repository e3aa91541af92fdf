//! How long a job will take, and what limits it: arithmetic on IBM's published limits and our own measured speeds.

use serde::Serialize;
use snapferry_ibmcloud::vpc::LARGEST_IMAGE;
use snapferry_ibmcloud::vpc::model::StorageGeneration;

use super::state::DiskState;
use super::steps::preflight;

/// The least that a server's boot volume keeps of the bandwidth for volumes, in Mbit/s (IBM's documentation, "Bandwidth allocation").
const BOOT_SHARE: u64 = 393;
/// What one core compresses at level `fast` of a real boot disk, in MB/s (`benches/README.md`: 10 GiB in 10.8 s on two cores).
const CORE_COMPRESSES: f64 = 490.0;
/// What one core decodes of such an image, in MB/s of the disk (`benches/README.md`: 10 GiB in 7.8 s on two cores).
const CORE_DECODES: f64 = 680.0;
/// Image bytes for each byte of the disk: 0.286 of one that is four fifths full (`benches/README.md`, deflate fast), and some more for fuller ones.
const RATIO: f64 = 0.3;
/// Bytes in a GB as the API counts volumes: GiB.
const GB: f64 = 1_073_741_824.0;

/// What limits a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// What the volume's profile gives.
    VolumeProfile,
    /// What this server has for its volumes.
    ServerVolumeBandwidth,
    /// This server's network.
    ServerNetwork,
    /// This server's cores.
    Cores,
    /// The cloud, which publishes no times.
    Cloud,
}

impl Limit {
    /// In words, with what would help.
    #[must_use]
    pub fn words(self) -> &'static str {
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

/// The server that converts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converter {
    /// Cores.
    pub cores: u64,
    /// Megabits a second for all of its volumes, where it is known.
    pub volume_bandwidth: Option<u64>,
    /// Megabits a second for its network, where it is known.
    pub network_bandwidth: Option<u64>,
    /// Megabits a second that the profiles of its other data volumes give: that share is theirs even while they are idle.
    pub other_volumes: u64,
    /// Volumes that are read at a time.
    pub at_a_time: u64,
}

impl Converter {
    /// Of the bandwidth for volumes, what one volume with a profile of `own` Mbit/s gets: the boot volume's share is kept back, the rest is
    /// divided by what the volumes' profiles give (IBM's documentation, "Bandwidth allocation").
    fn share(&self, all: u64, own: u64) -> u64 {
        let rest = all.saturating_sub(BOOT_SHARE);
        let wanted = self.at_a_time.max(1) * own + self.other_volumes;
        (rest * own / wanted.max(1)).max(1)
    }
}

/// A part of a job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// Which.
    pub name: &'static str,
    /// Expected minutes.
    pub minutes: f64,
    /// What limits it.
    pub limit: Limit,
    /// The speed that it is reckoned with, in MB/s of the disk, where bytes are moved.
    pub megabytes_per_second: Option<f64>,
}

/// A whole job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// GB of the disk.
    pub capacity_gb: u64,
    /// The profile of the volume that is read.
    pub volume_profile: String,
    /// What that gives, in Mbit/s.
    pub volume_bandwidth: u64,
    /// Its phases in order.
    pub phases: Vec<Phase>,
    /// All together.
    pub minutes: f64,
}

/// What a profile gives a volume of `capacity` GB, in Mbit/s (IBM's documentation of block storage profiles: operations a second times the size that
/// each is counted with, up to a cap).
#[must_use]
pub fn profile_bandwidth(profile: &str, capacity: u64, asked: Option<u64>) -> u64 {
    // Operations a second for each GB, KiB that each counts for, MB/s at most.
    let (each, size, cap) = match profile {
        "general-purpose" => (3, 16, 670),
        "5iops-tier" => (5, 16, 768),
        "10iops-tier" => (10, 256, 1024),
        // The least of what may be asked for.
        _ => return asked.unwrap_or(1000),
    };
    let operations = (each * capacity).max(3000);
    let megabits = operations * size * 1024 * 8 / 1_000_000;
    megabits.min(cap * 8)
}

/// Megabytes a second of so many megabits.
fn megabytes(megabits: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a bandwidth in Mbit/s has far fewer than 53 bits")]
    let megabits = megabits as f64;
    megabits / 8.0
}

fn slowest(bounds: &[(f64, Limit)]) -> (f64, Limit) {
    bounds.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, Limit::Cloud))
}

/// Reckons it.
#[must_use]
pub fn forecast(disk: &DiskState, profile: Option<&str>, converter: &Converter) -> Forecast {
    let (volume_profile, asked) = preflight::profile(disk, profile);
    let volume_bandwidth = profile_bandwidth(&volume_profile, disk.capacity, asked);
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
        // What goes over the network is the image, the speed is told of the disk.
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
        // 100 GB of general purpose: 3000 operations of 16 KiB are 393 Mbit/s; of the fastest tier, 16 times that.
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
        // Two at a time: 303 Mbit/s each. Beside a scratch volume of the same profile: 202.
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
