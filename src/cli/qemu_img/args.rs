//! Sizes, formats and lists of options, as QEMU reads them.

use std::ffi::OsStr;
use std::path::Path;

use super::Stop;

/// Image format that is supported.
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

    /// Returns the format of that name. None if QEMU has none of that name either.
    pub fn parse(typed: &OsStr) -> Result<Option<Self>, Stop> {
        let name = typed.to_string_lossy();
        match &*name {
            // `host_device` and `file` are QEMU's names for a raw device and a raw file.
            "raw" | "host_device" | "file" => Ok(Some(Self::Raw)),
            "qcow2" => Ok(Some(Self::Qcow2)),
            known if OTHERS.contains(&known) => Err(Stop::NotDone(format!("the format {known}"))),
            _ => Ok(None),
        }
    }
}

/// Formats and drivers that QEMU has and that are not supported.
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

/// Bytes that QEMU reads of a file to detect its format (`BLOCK_PROBE_BUF_SIZE`).
pub const PROBED: u64 = 512;

/// Magic bytes of formats that are not supported: their offset, the bytes, and the name of the format. They
/// are those of QEMU's probe functions.
const MAGICS: [(usize, &[u8], &str); 12] = [
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
    // Version 1 only: QEMU does not know LUKS 2, and takes it as raw.
    (0, b"LUKS\xba\xbe\0\x01", "luks"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"WithoutFreeSpace\x02\0\0\0", "parallels"),
    (0, b"WithouFreSpacExt\x02\0\0\0", "parallels"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n", "cloop"),
];

/// Detects the format of a file from its first [`PROBED`] bytes and its name, as QEMU does if the user names
/// no format.
pub fn probe(start: &[u8], name: &Path) -> Result<Format, Stop> {
    if start.starts_with(b"QFI\xfb") && !start.starts_with(b"QFI\xfb\0\0\0\x01") {
        return Ok(Format::Qcow2);
    }
    match other_format(start, name) {
        None => Ok(Format::Raw),
        Some(other) => Err(Stop::NotDone(format!(
            "the format {other}, which the image seems to have; -f raw takes its bytes as they are,"
        ))),
    }
}

fn other_format(start: &[u8], name: &Path) -> Option<&'static str> {
    let at = |offset: usize, magic: &[u8]| start.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((_, _, format)) = MAGICS.iter().find(|(offset, magic, _)| at(*offset, magic)) {
        return Some(format);
    }
    if is_vmdk_descriptor(start) {
        return Some("vmdk");
    }
    // Bochs: three text fields, each ended by a zero byte; then the version.
    let is_bochs = at(0, b"Bochs Virtual HD Image\0")
        && at(32, b"Redolog\0")
        && at(48, b"Growing\0")
        && (at(64, &0x0001_0000_u32.to_le_bytes()) || at(64, &0x0002_0000_u32.to_le_bytes()));
    if is_bochs {
        return Some("bochs");
    }
    // The trailer of a DMG image is at the end of the file, so QEMU goes by the name.
    let is_dmg =
        name.as_os_str().as_encoded_bytes().strip_suffix(b".dmg").is_some_and(|before| !before.is_empty());
    is_dmg.then_some("dmg")
}

/// Returns true if a text describes a VMDK disk: comments and lines of spaces, then its version.
fn is_vmdk_descriptor(start: &[u8]) -> bool {
    let is_blank = |line: &[u8]| line.starts_with(b" ") && line.trim_ascii().is_empty();
    let first =
        start.split_inclusive(|byte| *byte == b'\n').find(|line| !line.starts_with(b"#") && !is_blank(line));
    let versions: [&[u8]; 3] = [b"version=1", b"version=2", b"version=3"];
    first.is_some_and(|line| {
        let line = line.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        line.is_some_and(|line| versions.contains(&line))
    })
}

/// Returns the protocol of a file's name as QEMU reads it, as in `nbd:...`: there is a colon before any
/// slash.
pub fn protocol(name: &str) -> Option<&str> {
    let (before, _) = name.split_once(':')?;
    (!before.contains('/')).then_some(before)
}

/// Parses a number with an optional unit, as QEMU's `qemu_strtosz` does: bytes, or one of bkKMGTPE;
/// hexadecimal without a unit, and a fraction with one.
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
        // A fraction of a byte is refused.
        if shift == 0 && fraction.bytes().any(|digit| digit != b'0') {
            return None;
        }
        let part: u64 = fraction.parse().ok()?;
        let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        bytes = bytes
            .checked_add(u64::try_from(u128::from(part) * u128::from(unit) / u128::from(scale)).ok()?)?;
    }
    Some(bytes)
}

/// Parses `on` and `off`, and the other words that QEMU takes for them.
pub fn switch(typed: &str) -> Option<bool> {
    match typed {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// Parses `key=value,key=value`, with `,,` for a comma in a value; a key alone means `key=on`.
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
    fn formats_are_told_by_their_first_bytes_as_qemu_tells_them() {
        let found = |start: &[u8], name: &str| {
            let mut front = start.to_vec();
            front.resize(512, 0);
            match probe(&front, Path::new(name)) {
                Ok(format) => format.name().to_owned(),
                Err(Stop::NotDone(what)) => what.split([' ', ',']).nth(2).unwrap_or_default().to_owned(),
                Err(other) => panic!("{other:?}"),
            }
        };
        let bochs = |version: &[u8]| {
            let mut header = [0; 68];
            header[..22].copy_from_slice(b"Bochs Virtual HD Image");
            header[32..39].copy_from_slice(b"Redolog");
            header[48..55].copy_from_slice(b"Growing");
            header[64..].copy_from_slice(version);
            header
        };
        let vdi = [&[0; 64][..], b"\x7f\x10\xda\xbe"].concat();
        let cases: [(&[u8], &str); 20] = [
            (b"QFI\xfb\0\0\0\x03", "qcow2"),
            (b"QFI\xfb\0\0\0\x01", "qcow"),
            (b"COWD", "vmdk"),
            (b"# Disk DescriptorFile\nversion=1\n", "vmdk"),
            (b"# a\r\n  \r\nversion=3\r\n", "vmdk"),
            (b"\nversion=2\n", "raw"),
            (b"# version=1\nCID=1\nversion=1\n", "raw"),
            (b"version=4\n", "raw"),
            (b"WithoutFreeSpace\x02\0\0\0", "parallels"),
            (b"WithouFreSpacExt\x02\0\0\0", "parallels"),
            (b"WithoutFreeSpace\x03\0\0\0", "raw"),
            (b"LUKS\xba\xbe\0\x01", "luks"),
            (b"LUKS\xba\xbe\0\x02", "raw"),
            (&bochs(&[0, 0, 1, 0]), "bochs"),
            (&bochs(&[0, 0, 2, 0]), "bochs"),
            (&bochs(&[0, 0, 3, 0]), "raw"),
            (&vdi, "vdi"),
            (&vdi[1..], "raw"),
            (
                b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n",
                "cloop",
            ),
            (b"#!/bin/sh\n", "raw"),
        ];
        for (start, format) in cases {
            assert_eq!(found(start, "disk"), format, "{}", String::from_utf8_lossy(start));
        }
        assert_eq!(
            [found(b"", "a.dmg"), found(b"", ".dmg"), found(b"QFI\xfb\0\0\0\x03", "a.dmg")],
            ["dmg", "raw", "qcow2"]
        );
        assert_eq!(probe(&[], Path::new("short")).ok(), Some(Format::Raw));
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
