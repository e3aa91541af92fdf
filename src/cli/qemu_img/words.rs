//! Sizes, formats and lists of options, as QEMU reads them.

use std::ffi::OsStr;

use super::Stop;

/// An image format that we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format of that name; `None` where QEMU has none either.
    pub fn parse(typed: &OsStr) -> Result<Option<Self>, Stop> {
        let name = typed.to_string_lossy();
        match &*name {
            // What QEMU itself calls a raw device and a raw file.
            "raw" | "host_device" | "file" => Ok(Some(Self::Raw)),
            "qcow2" => Ok(Some(Self::Qcow2)),
            known if OTHERS.contains(&known) => Err(Stop::NotDone(format!("the format {known}"))),
            _ => Ok(None),
        }
    }
}

/// Formats and drivers that QEMU has and we don't.
const OTHERS: [&str; 26] = [
    "blkdebug",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-on-read",
    "dmg",
    "ftp",
    "ftps",
    "gluster",
    "http",
    "https",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "parallels",
    "qcow",
    "qed",
    "rbd",
    "ssh",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

/// How a format that we don't do begins (QEMU's probe functions), and its name.
const MAGICS: [(&[u8], &str); 7] = [
    (b"QFI\xfb\0\0\0\x01", "qcow"),
    (b"KDMV", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
    (b"QED\0", "qed"),
    (b"LUKS\xba\xbe", "luks"),
];

/// What a file is whose first bytes these are: as QEMU probes where no format was given.
pub fn probe(start: &[u8]) -> Result<Format, Stop> {
    if let Some((_, name)) = MAGICS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(Stop::NotDone(format!(
            "the format {name}, which the image seems to have; -f raw takes its bytes as they are,"
        )));
    }
    Ok(if start.starts_with(b"QFI\xfb") { Format::Qcow2 } else { Format::Raw })
}

/// Whether a file's name is a protocol's to QEMU, as in `nbd:...`: there is a colon before any slash.
pub fn protocol(name: &str) -> Option<&str> {
    let (before, _) = name.split_once(':')?;
    (!before.contains('/')).then_some(before)
}

/// A number with an optional unit, as QEMU's `qemu_strtosz` reads it: bytes, or one of bkKMGTPE; hexadecimal without a unit, and a
/// fraction with one.
pub fn size(typed: &str) -> Option<u64> {
    let text = typed.trim_start();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = if whole.is_empty() && !fraction.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    let unit = 1_u64 << shift;
    let mut bytes = whole.checked_mul(unit)?;
    if !fraction.is_empty() {
        // No bytes are cut in pieces.
        if shift == 0 && fraction.bytes().any(|digit| digit != b'0') {
            return None;
        }
        let part: u64 = fraction.parse().ok()?;
        let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        bytes = bytes.checked_add(u64::try_from(u128::from(part) * u128::from(unit) / u128::from(scale)).ok()?)?;
    }
    Some(bytes)
}

/// `on` and `off`, and what else QEMU takes for them.
pub fn switch(typed: &str) -> Option<bool> {
    match typed {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// `key=value,key=value`, with `,,` for a comma in a value; a key alone means `key=on`.
pub fn pairs(typed: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut pair = String::new();
    let mut chars = typed.chars().peekable();
    let mut end = |pair: &mut String| {
        if !pair.is_empty() {
            let (key, value) = pair.split_once('=').unwrap_or((pair, "on"));
            pairs.push((key.to_owned(), value.to_owned()));
            pair.clear();
        }
    };
    while let Some(c) = chars.next() {
        if c != ',' {
            pair.push(c);
        } else if chars.next_if_eq(&',').is_some() {
            pair.push(',');
        } else {
            end(&mut pair);
        }
    }
    end(&mut pair);
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        for (typed, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("64k", 65_536),
            ("1K", 1024),
            ("1.5M", 3 << 19),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
            ("0x200", 512),
            ("7b", 7),
            (".5k", 512),
        ] {
            assert_eq!(size(typed), Some(bytes), "{typed}");
        }
        for typed in ["", "x", "-1", "1Q", "1.5", "1kb", "99E", "1 k", "0x10k"] {
            assert_eq!(size(typed), None, "{typed:?}");
        }
    }

    #[test]
    fn lists_keep_doubled_commas() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(pairs("a=1,b=2,,3,c"), [pair("a", "1"), pair("b", "2,3"), pair("c", "on")]);
        assert_eq!(pairs(""), []);
    }

    #[test]
    fn names_with_protocols_are_known_by_their_colon() {
        for (name, found) in [
            ("nbd:localhost", Some("nbd")),
            ("./a:b", None),
            ("/dev/disk/by-path/pci-0:1", None),
            ("json:{}", Some("json")),
            ("a", None),
        ] {
            assert_eq!(protocol(name), found, "{name}");
        }
    }
}
