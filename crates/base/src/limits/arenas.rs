//! Bound on the number of heaps (arenas) of glibc's allocator.
#![allow(unsafe_code)]

use super::{Allowance, HEAPS};
use crate::units::MIB;

/// Address space that glibc reserves for the heap of a thread (`HEAP_MAX_SIZE` in malloc/arena.c).
const HEAP: u64 = 64 * MIB;

/// Keeps the heaps of threads within their share of a limited address space. By default glibc reserves one
/// heap for each thread, up to eight a core, and that address space is then missing for stacks and buffers.
/// Does nothing if the address space has no limit.
pub fn bound_arenas(allowance: &Allowance) {
    let Some(space) = allowance.address_space else { return };
    let heaps = (space.0 / HEAPS / HEAP).clamp(1, 1024);
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn mallopt(param: i32, value: i32) -> i32;
        }
        /// Value from malloc.h.
        const M_ARENA_MAX: i32 = -8;
        // SAFETY: the signature is that of malloc.h. The call takes two numbers, sets one parameter of the
        // allocator, and may be made at any time.
        let _refusal_changes_nothing = unsafe { mallopt(M_ARENA_MAX, i32::try_from(heaps).unwrap_or(1)) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = heaps;
}
