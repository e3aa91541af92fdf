//! Deflate (RFC 1951) in one call, made around the match finder of Intel's ISA-L.
//!
//! ISA-L's assembler code finds the matches and writes the tokens. What lies between is written here: where
//! blocks end, their Huffman codes, and their headers. `README.md` has the source of the assembler code and
//! the changes to it.
//!
//! The output depends on the input alone: not on the CPU, on addresses or on earlier inputs.

#[cfg(target_arch = "x86_64")]
mod bits;
#[cfg(target_arch = "x86_64")]
mod blocks;
#[cfg(target_arch = "x86_64")]
mod codes;
#[cfg(target_arch = "x86_64")]
mod finder;
#[cfg(target_arch = "x86_64")]
mod tables;

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere;

#[cfg(target_arch = "x86_64")]
pub use blocks::Deflate;
#[cfg(not(target_arch = "x86_64"))]
pub use elsewhere::Deflate;

/// Version of ISA-L that the assembler code is from.
pub const VERSION: &str = "2.31.0";

/// Description of the encoder: the same description stands for the same bytes. Each change of the bytes needs
/// another one.
pub const DESCRIPTION: &str = "snapferry-isal 1 (isa-l 2.31), 32 KiB window";

/// Refusal of a new encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This CPU lacks SSE4.2, or the program was built for another kind of CPU than x86-64.
    Cpu,
    /// The system refuses the memory.
    Memory,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu => "the CPU has no SSE4.2",
            Self::Memory => "the system refuses the memory of an encoder",
        })
    }
}

impl std::error::Error for Refusal {}
