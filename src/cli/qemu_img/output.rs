//! Properties of a new image: `-O` or `-f`, and `-o`.

use std::ffi::OsStr;

use snapferry_base::units::{ByteCount, ClusterBits};
use snapferry_engine::compress::Codec;
use snapferry_qcow2::header::Version;

use super::Stop;
use super::args::{Format, pairs, size, switch};

/// Properties of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub format: Format,
    /// Cluster size in bytes, as typed. A wrong one is reported at the same point as by QEMU.
    pub cluster: u64,
    pub codec: Codec,
    pub version: Version,
    /// Compatibility level as typed, for output.
    pub compat: Option<String>,
    pub preallocation: Option<String>,
    pub size: Option<u64>,
}

/// Options that are known but not supported, whatever their value. A name with a dot at its end stands for
/// all options that begin so.
const NOT_DONE: [&str; 9] = [
    "backing_file",
    "backing_fmt",
    "data_file",
    "data_file_raw",
    "encryption",
    "encrypt.",
    "keep_data_file",
    "nocow",
    "extent_size_hint",
];

impl Output {
    /// Parses all values of `-o`, in order. Messages go after "qemu-img: "; `in_context` adds the file's name
    /// to those that QEMU prints with it.
    pub fn parse<'a>(
        format: Format,
        options: impl Iterator<Item = &'a OsStr>,
        in_context: &dyn Fn(String) -> String,
    ) -> Result<Self, Stop> {
        let mut output = Self {
            format,
            cluster: ClusterBits::DEFAULT.size(),
            codec: Codec::Deflate,
            version: Version::V3,
            compat: None,
            preallocation: None,
            size: None,
        };
        for option in options {
            for (key, value) in pairs(&option.to_string_lossy()) {
                output.set(&key, &value, in_context)?;
            }
        }
        if format == Format::Qcow2 {
            output.check(in_context)?;
        }
        Ok(output)
    }

    fn set(&mut self, key: &str, value: &str, in_context: &dyn Fn(String) -> String) -> Result<(), Stop> {
        let not_done = || Stop::NotDone(format!("-o {key}={value}"));
        let unknown = |parameter: &str| {
            Stop::error(in_context(format!("Parameter '{parameter}' does not accept value '{value}'")))
        };
        if matches!(key, "help" | "?") {
            return Err(Stop::NotDone("-o help".into()));
        }
        if NOT_DONE.iter().any(|name| key == *name || (name.ends_with('.') && key.starts_with(name))) {
            return Err(not_done());
        }
        match (key, self.format) {
            ("size", _) => self.size = Some(number(key, value)?),
            ("preallocation", format) => match (value, format) {
                ("off", _) => self.preallocation = Some(value.to_owned()),
                ("falloc" | "full", _) | ("metadata", Format::Qcow2) => return Err(not_done()),
                _ => return Err(unknown("preallocation")),
            },
            ("cluster_size", Format::Qcow2) => self.cluster = number(key, value)?,
            ("compression_type", Format::Qcow2) => {
                self.codec = match value {
                    "zlib" => Codec::Deflate,
                    "zstd" => Codec::Zstd,
                    _ => return Err(unknown("compression-type")),
                }
            }
            ("compat", Format::Qcow2) => {
                self.version = match value {
                    "0.10" | "v2" => Version::V2,
                    "1.1" | "v3" => Version::V3,
                    _ => return Err(unknown("version")),
                };
                self.compat = Some(value.to_owned());
            }
            ("lazy_refcounts" | "extended_l2", Format::Qcow2) => match switch(value) {
                Some(false) => {}
                Some(true) => return Err(not_done()),
                None => return Err(Stop::error(format!("Parameter '{key}' expects 'on' or 'off'"))),
            },
            ("refcount_bits", Format::Qcow2) => match number(key, value)? {
                16 => {}
                1 | 2 | 4 | 8 | 32 | 64 => return Err(not_done()),
                _ => {
                    return Err(Stop::error(in_context(
                        "Refcount width must be a power of two and may not exceed 64 bits".into(),
                    )));
                }
            },
            _ => return Err(Stop::error(format!("Invalid parameter '{key}'"))),
        }
        Ok(())
    }

    fn check(&self, in_context: &dyn Fn(String) -> String) -> Result<(), Stop> {
        if self.version == Version::V2 && self.codec != Codec::Deflate {
            let message = "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)";
            return Err(Stop::error(in_context(message.into())));
        }
        match self.cluster_bits() {
            Some(_) => Ok(()),
            None => Err(Stop::error(in_context(
                "Cluster size must be a power of two between 512 and 2048k".into(),
            ))),
        }
    }

    /// Returns the cluster size, if it is a valid one.
    pub fn cluster_bits(&self) -> Option<ClusterBits> {
        ClusterBits::from_size(ByteCount(self.cluster)).ok()
    }
}

fn number(key: &str, value: &str) -> Result<u64, Stop> {
    size(value).ok_or_else(|| {
        Stop::error(format!(
            "Parameter '{key}' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
        ))
    })
}
