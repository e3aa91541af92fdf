//! The heaps of glibc's allocator.
#![allow(unsafe_code)]

use super::{Allowance, HEAPS};
use crate::units::MIB;

/// Address space that glibc reserves for each thread's heap (`HEAP_MAX_SIZE` in malloc/arena.c).
const HEAP: u64 = 64 * MIB;

/// Keeps the heaps of threads within their share of a limited address space: glibc reserves one for each of them otherwise, up to eight a core, and what
/// it takes is missing for stacks and buffers. Without a limit it does nothing.
pub fn bound_arenas(allowance: &Allowance) {
    let Some(space) = allowance.address_space else { return };
    let heaps = (space.0 / HEAPS / HEAP).clamp(1, 1024);
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn mallopt(param: i32, value: i32) -> i32;
        }
        /// malloc.h
        const M_ARENA_MAX: i32 = -8;
        // SAFETY: the signature is that of malloc.h; the call takes two numbers, sets one of the allocator's own, and may be made at any time.
        let _refusal_changes_nothing = unsafe { mallopt(M_ARENA_MAX, i32::try_from(heaps).unwrap_or(1)) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = heaps;
}
