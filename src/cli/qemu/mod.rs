//! Output of `qemu-img` about images, as JSON and as text: for the commands of `snapferry`, and for the
//! drop-in replacement.
//!
//! Field names, value types and lines are those of QEMU 10.0.2; `tests/it/inspect` compares them with the
//! tool itself.

use std::io::{self, Write};

use serde::Serialize;

pub mod check;
pub mod info;
pub mod map;
pub mod measure;

/// Writes JSON as QEMU does: four spaces per level.
///
/// # Errors
/// If `to` can't be written to.
pub fn write_json(value: &impl Serialize, to: &mut impl Write) -> io::Result<()> {
    let mut json = serde_json::Serializer::with_formatter(
        &mut *to,
        serde_json::ser::PrettyFormatter::with_indent(b"    "),
    );
    value.serialize(&mut json)?;
    writeln!(to)
}

/// Returns a size as QEMU prints it: three significant digits, as C's `%0.3g` has them.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    // QEMU takes the next unit at 1000 of a unit, not at 1024.
    while unit + 1 < UNITS.len() && u128::from(bytes) >= 1000 << (10 * unit) {
        unit += 1;
    }
    format!("{} {}", three_digits(bytes, 1 << (10 * unit)), UNITS[unit])
}

/// Returns `bytes / divisor` with three significant digits and without zeros at the end.
fn three_digits(bytes: u64, divisor: u64) -> String {
    let (bytes, divisor) = (u128::from(bytes), u128::from(divisor));
    for (decimals, scale) in [(3_usize, 1000_u128), (2, 100), (1, 10), (0, 1)] {
        // Half to even, as the C library rounds; the quotients are exact in binary.
        let (whole, rest) = (bytes * scale / divisor, bytes * scale % divisor);
        let rounded = whole + u128::from(rest * 2 > divisor || (rest * 2 == divisor && whole % 2 == 1));
        // Three digits behind the point are three significant ones below 1 only.
        if rounded < 1000 && decimals > 0 {
            let text = format!("{}.{:0decimals$}", rounded / scale, rounded % scale);
            return text.trim_end_matches('0').trim_end_matches('.').to_owned();
        }
        if decimals == 0 {
            return rounded.to_string();
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_qemu_prints_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (368_640, "360 KiB"),
            (429_056, "419 KiB"),
            (1_048_576, "1 MiB"),
            (3_145_728, "3 MiB"),
            (1_572_864, "1.5 MiB"),
            (10_737_418_240, "10 GiB"),
            (1_073_741_823, "1 GiB"),
            (1_099_511_627_776, "1 TiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }
}
