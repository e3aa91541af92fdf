//! Output of `qemu-img info`.

use std::fs::Metadata;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use serde::Serialize;
use snapferry_base::units::SECTOR;
use snapferry_qcow2::header::Version;
use snapferry_qcow2::{Bitmap, Codec, HeaderInfo, Snapshot};

use super::size;

/// Properties of a file or an image, with QEMU's field names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    children: Vec<Child>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    snapshots: Vec<SnapshotInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename_format: Option<String>,
    virtual_size: u64,
    filename: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_size: Option<u64>,
    format: &'static str,
    actual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    format_specific: Option<Specific>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted: Option<bool>,
    dirty_flag: bool,
}

#[derive(Debug, Serialize)]
struct Child {
    name: &'static str,
    info: Info,
}

#[derive(Debug, Serialize)]
struct Specific {
    r#type: &'static str,
    data: Data,
}

/// Properties that only qcow2 has. For a plain file all are absent.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Data {
    #[serde(skip_serializing_if = "Option::is_none")]
    compat: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lazy_refcounts: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bitmaps: Vec<BitmapInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refcount_bits: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    corrupt: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extended_l2: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct SnapshotInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    icount: Option<u64>,
    vm_clock_nsec: u64,
    name: String,
    date_sec: u32,
    date_nsec: u32,
    vm_clock_sec: u64,
    id: String,
    vm_state_size: u64,
}

#[derive(Debug, Serialize)]
struct BitmapInfo {
    flags: Vec<&'static str>,
    name: String,
    granularity: u64,
}

/// Properties of the file or object that holds an image.
#[derive(Clone, Debug)]
pub struct ImageBytes {
    filename: String,
    /// QEMU's name for the kind of file.
    protocol: &'static str,
    len: u64,
    /// Allocated bytes of the file.
    actual: u64,
}

impl ImageBytes {
    /// Returns the properties of a local file or device of `len` bytes.
    #[must_use]
    pub fn local(path: &Path, found: &Metadata, len: u64) -> Self {
        let kind = found.file_type();
        let protocol = match () {
            () if kind.is_block_device() => "host_device",
            () if kind.is_char_device() => "host_cdrom",
            () => "file",
        };
        Self { filename: path.display().to_string(), protocol, len, actual: found.blocks() * 512 }
    }

    /// Returns the properties of an object in a store, which takes as many bytes as it is long.
    #[must_use]
    pub fn object(url: &str, len: u64) -> Self {
        Self { filename: url.to_owned(), protocol: "s3", len, actual: len }
    }

    fn bare(&self, format: &'static str, virtual_size: u64) -> Info {
        Info {
            children: Vec::new(),
            snapshots: Vec::new(),
            backing_filename_format: None,
            virtual_size,
            filename: self.filename.clone(),
            cluster_size: None,
            format,
            actual_size: self.actual,
            format_specific: None,
            full_backing_filename: None,
            backing_filename: None,
            encrypted: None,
            dirty_flag: false,
        }
    }

    /// Returns the properties of a format, over those of the file, whose length QEMU rounds up to whole
    /// sectors.
    fn with_format(&self, format: &'static str, virtual_size: u64) -> Info {
        let specific = Specific { r#type: "file", data: Data::default() };
        let file = Info {
            format_specific: Some(specific),
            ..self.bare(self.protocol, self.len.next_multiple_of(SECTOR))
        };
        Info { children: vec![Child { name: "file", info: file }], ..self.bare(format, virtual_size) }
    }
}

impl Info {
    /// Returns the properties of a raw disk.
    #[must_use]
    pub fn raw(held: &ImageBytes) -> Self {
        held.with_format("raw", held.len.next_multiple_of(SECTOR))
    }

    /// Returns the properties of a qcow2 image.
    #[must_use]
    pub fn qcow2(
        held: &ImageBytes,
        header_info: &HeaderInfo,
        snapshots: &[Snapshot],
        bitmaps: &[Bitmap],
    ) -> Self {
        let header = &header_info.header;
        let v3 = header.version == Version::V3;
        let data = Data {
            compat: Some(if v3 { "1.1" } else { "0.10" }),
            data_file: header_info.data_file.clone(),
            compression_type: Some(match header.compression {
                Codec::Deflate => "zlib",
                Codec::Zstd => "zstd",
            }),
            lazy_refcounts: v3.then_some(header_info.lazy_refcounts),
            bitmaps: bitmaps.iter().map(BitmapInfo::of).collect(),
            refcount_bits: Some(1 << header.refcount_order),
            corrupt: v3.then_some(header_info.corrupt),
            extended_l2: v3.then_some(header.extended_l2),
        };
        Self {
            snapshots: snapshots.iter().map(SnapshotInfo::of).collect(),
            backing_filename_format: header_info
                .backing_format
                .clone()
                .filter(|_| header_info.backing_file.is_some()),
            cluster_size: Some(header.cluster.size()),
            format_specific: Some(Specific { r#type: "qcow2", data }),
            full_backing_filename: header_info
                .backing_file
                .as_deref()
                .map(|name| sibling_path(&held.filename, name)),
            backing_filename: header_info.backing_file.clone(),
            encrypted: (header_info.encryption != 0).then_some(true),
            dirty_flag: header.dirty,
            ..held.with_format("qcow2", header.virtual_size.0 / SECTOR * SECTOR)
        }
    }

    /// Writes the properties as `qemu-img info` prints them for people.
    ///
    /// # Errors
    /// If `to` can't be written to.
    pub fn write_text(&self, to: &mut impl Write) -> io::Result<()> {
        writeln!(to, "image: {}", self.filename)?;
        writeln!(to, "file format: {}", self.format)?;
        writeln!(to, "virtual size: {} ({} bytes)", size(self.virtual_size), self.virtual_size)?;
        writeln!(to, "disk size: {}", size(self.actual_size))?;
        if self.encrypted == Some(true) {
            writeln!(to, "encrypted: yes")?;
        }
        if let Some(cluster) = self.cluster_size {
            writeln!(to, "cluster_size: {cluster}")?;
        }
        if self.dirty_flag {
            writeln!(to, "cleanly shut down: no")?;
        }
        if let Some(name) = &self.backing_filename {
            let full = self.full_backing_filename.as_ref().filter(|full| *full != name);
            let full = full.map_or_else(String::new, |full| format!(" (actual path: {full})"));
            writeln!(to, "backing file: {name}{full}")?;
            if let Some(format) = &self.backing_filename_format {
                writeln!(to, "backing file format: {format}")?;
            }
        }
        self.write_snapshots(to)?;
        if let Some(Specific { r#type: "qcow2", data }) = &self.format_specific {
            writeln!(to, "Format specific information:")?;
            data.write_text(to)?;
        }
        for Child { name, info } in &self.children {
            writeln!(to, "Child node '/{name}':")?;
            writeln!(to, "    filename: {}", info.filename)?;
            writeln!(to, "    protocol type: {}", info.format)?;
            writeln!(to, "    file length: {} ({} bytes)", size(info.virtual_size), info.virtual_size)?;
            writeln!(to, "    disk size: {}", size(info.actual_size))?;
        }
        Ok(())
    }

    fn write_snapshots(&self, to: &mut impl Write) -> io::Result<()> {
        if self.snapshots.is_empty() {
            return Ok(());
        }
        writeln!(to, "Snapshot list:")?;
        writeln!(
            to,
            "{:<7} {:<16} {:>8}{:>20} {:>15} {:>10}",
            "ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"
        )?;
        for snapshot in &self.snapshots {
            let date = jiff::Timestamp::from_second(i64::from(snapshot.date_sec)).unwrap_or_default();
            let date = date.strftime("%Y-%m-%d %H:%M:%S").to_string();
            let seconds = snapshot.vm_clock_sec;
            let clock = format!(
                "{:04}:{:02}:{:02}.{:03}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60,
                snapshot.vm_clock_nsec / 1_000_000
            );
            let icount = snapshot.icount.map_or_else(|| "--".to_owned(), |count| count.to_string());
            let (id, name, state) = (&snapshot.id, &snapshot.name, size(snapshot.vm_state_size));
            writeln!(to, "{id:<7} {name:<16} {state:>8}{date:>20} {clock:>15} {icount:>10}")?;
        }
        Ok(())
    }
}

impl Data {
    fn write_text(&self, to: &mut impl Write) -> io::Result<()> {
        fn line(to: &mut impl Write, name: &str, value: Option<String>) -> io::Result<()> {
            value.map_or(Ok(()), |value| writeln!(to, "    {name}: {value}"))
        }
        line(to, "compat", self.compat.map(str::to_owned))?;
        line(to, "data file", self.data_file.clone())?;
        line(to, "compression type", self.compression_type.map(str::to_owned))?;
        line(to, "lazy refcounts", self.lazy_refcounts.map(|on| on.to_string()))?;
        self.write_bitmaps(to)?;
        line(to, "refcount bits", self.refcount_bits.map(|bits| bits.to_string()))?;
        line(to, "corrupt", self.corrupt.map(|on| on.to_string()))?;
        line(to, "extended l2", self.extended_l2.map(|on| on.to_string()))
    }

    fn write_bitmaps(&self, to: &mut impl Write) -> io::Result<()> {
        if !self.bitmaps.is_empty() {
            writeln!(to, "    bitmaps:")?;
        }
        for (number, bitmap) in self.bitmaps.iter().enumerate() {
            writeln!(to, "        [{number}]:")?;
            writeln!(to, "            flags:")?;
            for (number, flag) in bitmap.flags.iter().enumerate() {
                writeln!(to, "                [{number}]: {flag}")?;
            }
            writeln!(to, "            name: {}", bitmap.name)?;
            writeln!(to, "            granularity: {}", bitmap.granularity)?;
        }
        Ok(())
    }
}

impl BitmapInfo {
    fn of(bitmap: &Bitmap) -> Self {
        let flags = [(bitmap.in_use, "in-use"), (bitmap.auto, "auto")];
        Self {
            flags: flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect(),
            name: bitmap.name.clone(),
            granularity: bitmap.granularity.0,
        }
    }
}

impl SnapshotInfo {
    fn of(snapshot: &Snapshot) -> Self {
        const SECOND: u64 = 1_000_000_000;
        Self {
            icount: snapshot.icount,
            vm_clock_nsec: snapshot.vm_clock % SECOND,
            name: snapshot.name.clone(),
            date_sec: snapshot.date.0,
            date_nsec: snapshot.date.1,
            vm_clock_sec: snapshot.vm_clock / SECOND,
            id: snapshot.id.clone(),
            vm_state_size: snapshot.vm_state,
        }
    }
}

/// Returns a name that an image contains, relative to the folder of the image. The name is only printed,
/// never opened.
fn sibling_path(image: &str, name: &str) -> String {
    let is_url = name
        .split_once(':')
        .is_some_and(|(scheme, _)| scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)));
    match image.rsplit_once('/') {
        Some((folder, _)) if !name.starts_with('/') && !is_url => format!("{folder}/{name}"),
        _ => name.to_owned(),
    }
}
