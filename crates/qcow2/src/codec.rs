//! Codecs of compressed clusters.

use std::fmt;
use std::str::FromStr;

use snapferry_base::choice::UnknownNameError;

/// Codec of an image's compressed clusters: the header's compression type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Raw deflate (RFC 1951), without a zlib header: every qcow2 reader and every importer takes it.
    #[default]
    Deflate,
    /// One zstd frame (RFC 8878) for each cluster: smaller and quicker to read, if the reader supports it
    /// (QEMU 5.1 and later).
    Zstd,
}

impl Codec {
    /// All codecs, the default first.
    pub const ALL: [Self; 2] = [Self::Deflate, Self::Zstd];

    /// Name of the codec on command lines and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        }
    }
}

impl FromStr for Codec {
    type Err = UnknownNameError;
    fn from_str(typed: &str) -> Result<Self, UnknownNameError> {
        let found = Self::ALL.into_iter().find(|codec| codec.name() == typed);
        found.ok_or_else(|| UnknownNameError { typed: typed.to_owned(), choices: "deflate, zstd" })
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
