//! Raw disks: files and devices that are written, copied and compared.

mod compare;
mod copy;
mod differences;
mod signature;
mod target;

pub use compare::{Until, compare_sources};
pub use copy::{RawCopy, RawDestination, Zeros};
pub(crate) use differences::differences;
pub use differences::{Difference, Differences};
pub(crate) use target::{DeviceTarget, Disk, FileTarget, Target};
pub use target::{Existing, PageCache, RequiredKind, TargetError, UnknownPolicyError, ZeroPolicy};
