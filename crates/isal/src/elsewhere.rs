//! Stand-in for CPUs that ISA-L's code is not for: callers compile, and are refused.

use crate::Refusal;

/// Compressor that no CPU of this kind can run.
#[derive(Debug)]
pub enum Deflate {}

impl Deflate {
    /// Refuses.
    ///
    /// # Errors
    /// In each case.
    pub fn new() -> Result<Self, Refusal> {
        Err(Refusal::Cpu)
    }

    /// Returns whether this CPU has the instructions that the compressor needs: it has not.
    #[must_use]
    pub fn is_supported() -> bool {
        false
    }

    /// Can't be called.
    #[must_use]
    pub fn deflate(&mut self, _input: &[u8], _out: &mut [u8]) -> Option<usize> {
        match *self {}
    }
}
