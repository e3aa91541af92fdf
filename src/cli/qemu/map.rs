//! Output of `qemu-img map`.

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;

use serde::Serialize;
use snapferry_base::units::{GuestCluster, GuestOffset, SECTOR};
use snapferry_engine::source::{Extent, Source, SourceError};
use snapferry_qcow2::Mappings;
use snapferry_qcow2::l2::Mapping;
use snapferry_qcow2::mappings::{SUBCLUSTERS, SubclusterState};

/// Range of the disk whose bytes are all stored alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stretch {
    start: u64,
    length: u64,
    depth: u32,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

/// Reason for which QEMU prints no map for people.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("File contains external, encrypted or compressed clusters.")]
pub struct NotMapped;

/// Kind of storage of a stretch, without its offset.
#[derive(Clone, Copy)]
enum How {
    Absent,
    Zero,
    Data,
    Compressed,
}

impl Stretch {
    fn new(start: u64, length: u64, how: How, offset: Option<u64>) -> Self {
        let (present, zero, data, compressed) = match how {
            How::Absent => (false, true, false, false),
            How::Zero => (true, true, false, false),
            How::Data => (true, false, true, false),
            How::Compressed => (true, false, true, true),
        };
        Self { start, length, depth: 0, present, zero, data, compressed, offset }
    }

    /// Returns the range on the disk, if its bytes have to be read to be known.
    #[must_use]
    pub fn data(&self) -> Option<Range<u64>> {
        (self.data && !self.zero).then(|| self.start..self.start + self.length)
    }

    /// Returns true if `next`, the stretch right behind this one, is stored alike, and follows in the file
    /// too.
    fn goes_on_with(&self, next: &Self) -> bool {
        let alike = |stretch: &Self| {
            (stretch.present, stretch.zero, stretch.data, stretch.compressed, stretch.offset.is_some())
        };
        alike(self) == alike(next)
            && self.offset.is_none_or(|offset| Some(offset + self.length) == next.offset)
    }
}

impl fmt::Display for Stretch {
    /// Writes the line of `snapferry map`: start, length, kind, and offset in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.present, self.zero, self.compressed) {
            (false, _, _) => "nothing",
            (true, true, _) => "zeros",
            (true, false, true) => "compressed",
            (true, false, false) => "raw",
        };
        let position = self.offset.map_or_else(String::new, |offset| format!(" at {offset}"));
        write!(f, "{:>16} {:>16}  {what}{position}", self.start, self.length)
    }
}

/// List of stretches, each joined with the next if that continues it.
#[derive(Default)]
struct Joining(Vec<Stretch>);

impl Joining {
    fn push(&mut self, stretch: Stretch) {
        match self.0.last_mut() {
            _ if stretch.length == 0 => {}
            Some(last) if last.goes_on_with(&stretch) => last.length += stretch.length,
            _ => self.0.push(stretch),
        }
    }
}

/// Returns the map of an image.
#[must_use]
pub fn of_image(mappings: &Mappings) -> Vec<Stretch> {
    let cluster = mappings.cluster();
    let size = mappings.virtual_size().0;
    let mut found = Joining::default();
    let mut guest = GuestCluster(0);
    while guest.0 < mappings.guest_clusters() {
        let start = guest.offset(cluster).0;
        if let Some(next) = mappings.unmapped_run_end(guest) {
            found.push(Stretch::new(start, next.offset(cluster).0.min(size) - start, How::Absent, None));
            guest = next;
            continue;
        }
        let len = cluster.size().min(size.saturating_sub(start));
        let mut whole = |how, offset| found.push(Stretch::new(start, len, how, offset));
        match (mappings.mapping(guest), mappings.subclusters(guest)) {
            (Mapping::Compressed { .. }, _) => whole(How::Compressed, None),
            (mapping, Some(bits)) => {
                let host = match mapping {
                    Mapping::Raw { host, .. } => Some(host.0),
                    _ => None,
                };
                let step = cluster.size() / u64::from(SUBCLUSTERS);
                for number in 0..SUBCLUSTERS {
                    let at = step * u64::from(number);
                    let how = match bits.state(number) {
                        SubclusterState::Data => How::Data,
                        SubclusterState::Zero => How::Zero,
                        SubclusterState::Unallocated => How::Absent,
                    };
                    found.push(Stretch::new(
                        start + at,
                        step.min(len.saturating_sub(at)),
                        how,
                        host.map(|host| host + at),
                    ));
                }
            }
            (Mapping::Unallocated, None) => whole(How::Absent, None),
            (Mapping::Zero { reserved }, None) => whole(How::Zero, reserved.map(|(host, _)| host.0)),
            (Mapping::Raw { host, .. }, None) => whole(How::Data, Some(host.0)),
        }
        guest = GuestCluster(guest.0 + 1);
    }
    found.0
}

/// Returns the map of a raw disk: its holes, as far as the file system reports them.
///
/// # Errors
/// If the file system fails to report its holes.
pub fn of_raw(source: &dyn Source) -> Result<Vec<Stretch>, SourceError> {
    let size = source.size().0;
    let mut found = Joining::default();
    let mut at = 0;
    while at < size {
        let (end, how) = match source.extent_at(GuestOffset(at))? {
            Extent::Data { end } => (end.0, How::Data),
            Extent::Hole { end } => (end.0, How::Zero),
        };
        found.push(Stretch::new(at, end - at, how, Some(at)));
        at = end;
    }
    // QEMU's disks are whole sectors.
    found.push(Stretch::new(size, size.next_multiple_of(SECTOR) - size, How::Zero, Some(size)));
    Ok(found.0)
}

/// Writes the map as `qemu-img map --output=json` prints it: one stretch per line.
///
/// # Errors
/// If `to` can't be written to.
pub fn write_json(stretches: &[Stretch], to: &mut impl Write) -> io::Result<()> {
    // A disk of no bytes has one stretch of no bytes.
    let none = [Stretch { zero: false, ..Stretch::new(0, 0, How::Absent, None) }];
    let stretches = if stretches.is_empty() { &none } else { stretches };
    for (number, stretch) in stretches.iter().enumerate() {
        let Stretch { start, length, depth, present, zero, data, compressed, offset } = stretch;
        let offset = offset.map_or_else(String::new, |offset| format!(", \"offset\": {offset}"));
        write!(
            to,
            "{}{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {present}, \"zero\": {zero}, \
             \"data\": {data}, \"compressed\": {compressed}{offset}}}",
            if number == 0 { "[" } else { ",\n" },
        )?;
    }
    writeln!(to, "]")
}

/// Writes the map as `qemu-img map` prints it for people.
///
/// # Errors
/// If `to` can't be written to. The inner error if QEMU prints no such map.
pub fn write_text(
    stretches: &[Stretch],
    filename: &str,
    to: &mut impl Write,
) -> io::Result<Result<(), NotMapped>> {
    writeln!(to, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")?;
    for stretch in stretches.iter().filter(|stretch| stretch.data && !stretch.zero) {
        let Some(offset) = stretch.offset else { return Ok(Err(NotMapped)) };
        let hex = |number: u64| if number == 0 { "0".to_owned() } else { format!("{number:#x}") };
        writeln!(to, "{:<16}{:<16}{:<16}{filename}", hex(stretch.start), hex(stretch.length), hex(offset))?;
    }
    Ok(Ok(()))
}
