//! Buffers for O_DIRECT, and pools of them that bound the memory of a conversion.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::slice;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use snapferry_base::cancel::{Cancel, Stopped};
use snapferry_base::limits::OutOfMemory;
use snapferry_base::units::to_u64;

/// Alignment of every buffer's address, in bytes. The largest logical block size in use is 4096, and DMA
/// engines ask for a page at most.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// Alignment of buffers that are at least this long: x86-64's huge page, 2 MiB. For a direct read the kernel
/// pins one huge page instead of 512 small pages.
const HUGE_PAGE: usize = 2 << 20;

/// Memory in its own mapping, of fixed length, at a multiple of [`BUFFER_ALIGNMENT`]. It does not come from
/// the heap: that would reserve twice as much address space for a buffer of 2 MiB, and would end the process
/// instead of reporting that there is no memory.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is owned by the value alone, and bytes may be used from any thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access is read-only, through `Deref`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Returns a buffer of `len` zeros. The system allocates its memory when it is first touched.
    ///
    /// # Errors
    /// If the system refuses the memory.
    ///
    /// # Panics
    /// If `len` is zero.
    pub fn zeroed(len: usize) -> Result<Self, OutOfMemory> {
        assert!(len > 0, "a buffer holds something");
        let huge = if len >= HUGE_PAGE { Self::map_at_huge_page(len) } else { None };
        let start = huge.or_else(|| map(len)).ok_or_else(|| OutOfMemory::of("a buffer", to_u64(len)))?;
        if len >= HUGE_PAGE {
            // Whole huge pages only, and before the first touch, because pages that are small then stay
            // small. A kernel without huge pages refuses, which does no harm.
            let whole = len / HUGE_PAGE * HUGE_PAGE;
            // SAFETY: the range was just mapped above, and this advice changes no contents.
            let _ = unsafe { madvise(start.as_ptr().cast(), whole, Advice::LinuxHugepage) };
        }
        Ok(Self { start, len })
    }

    /// Maps extra memory, so that a huge page begins in it, and unmaps the rest around the buffer. Returns
    /// `None` if there is no room for that.
    fn map_at_huge_page(len: usize) -> Option<NonNull<u8>> {
        // 64 KiB is a multiple of every page size that a kernel has.
        let len = len.checked_next_multiple_of(1 << 16)?;
        let start = map(len.checked_add(HUGE_PAGE)?)?;
        let before = start.addr().get().next_multiple_of(HUGE_PAGE) - start.addr().get();
        // SAFETY: `before` is at most HUGE_PAGE, so all three ranges lie inside the mapping just made, which
        // no other code knows of. The unmapped memory is not used again. The kernel refuses to unmap zero
        // bytes, and then there is nothing to do.
        unsafe {
            let _ = munmap(start.as_ptr().cast(), before);
            let begin = start.add(before);
            let _ = munmap(begin.add(len).as_ptr().cast(), HUGE_PAGE - before);
            Some(begin)
        }
    }
}

/// Maps new memory, at an address of the kernel's choice.
fn map(len: usize) -> Option<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let start = unsafe {
        mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    };
    NonNull::new(start.ok()?.cast())
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: mapped in `zeroed` with this length, which the kernel rounds up to whole pages both times,
        // and no reference outlives self.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialised bytes that live as long as self, and no code writes
        // them while they are borrowed shared.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and self is borrowed uniquely.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// Reason why a pool gave no buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Untaken {
    /// The work was cancelled before a buffer was free.
    Stopped,
    /// The system refuses the memory.
    Memory(OutOfMemory),
}

impl From<Stopped> for Untaken {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<OutOfMemory> for Untaken {
    fn from(refused: OutOfMemory) -> Self {
        Self::Memory(refused)
    }
}

/// Fixed number of buffers of one length. [`BufferPool::take`] waits until one is free, which bounds the
/// memory. Each buffer is allocated when it is first needed.
#[derive(Debug)]
pub struct BufferPool {
    len: usize,
    free: Receiver<Option<AlignedBuf>>,
    back: Sender<Option<AlignedBuf>>,
}

impl BufferPool {
    /// Makes a pool of at most `count` buffers of `len` bytes.
    ///
    /// # Panics
    /// If `count` is zero.
    #[must_use]
    pub fn new(count: usize, len: usize) -> Self {
        assert!(count > 0, "a pool without buffers never gives one");
        let (back, free) = bounded(count);
        for _ in 0..count {
            back.send(None).expect("the receiver is here");
        }
        Self { len, free, back }
    }

    /// Waits for a buffer and takes it. It still holds what its last user wrote.
    ///
    /// # Errors
    /// If the work is cancelled first, or the system refuses the memory.
    pub fn take(&self, cancel: &Cancel) -> Result<PooledBuf, Untaken> {
        let slot = select! {
            recv(self.free) -> slot => slot.map_err(|_| Stopped)?,
            recv(cancel.closed()) -> _ => return Err(Untaken::Stopped),
        };
        let buf = match slot {
            Some(buf) => buf,
            None => AlignedBuf::zeroed(self.len).inspect_err(|_refused| {
                // The slot goes back to the pool, so that a later call can try again.
                let _ = self.back.try_send(None);
            })?,
        };
        Ok(PooledBuf { buf: Some(buf), back: self.back.clone() })
    }

    /// True if a `take` would have to wait now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }
}

/// Buffer on loan from its pool. It goes back when dropped, on any thread.
#[derive(Debug)]
pub struct PooledBuf {
    buf: Option<AlignedBuf>,
    back: Sender<Option<AlignedBuf>>,
}

const LENT: &str = "a buffer leaves its loan only when dropped";

impl Deref for PooledBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.buf.as_deref().expect(LENT)
    }
}

impl DerefMut for PooledBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.buf.as_deref_mut().expect(LENT)
    }
}

impl AsRef<[u8]> for PooledBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        // Never blocks: the channel has a place for every buffer. If the pool is gone, the buffer is freed
        // instead.
        let _ = self.back.try_send(self.buf.take());
    }
}

#[cfg(test)]
mod tests {
    use snapferry_base::cancel::Reason;

    use super::*;

    #[test]
    fn buffers_are_aligned_come_back_and_are_bounded() {
        let cancel = Cancel::new();
        let pool = BufferPool::new(2, 8192);
        let mut one = pool.take(&cancel).expect("a buffer");
        let two = pool.take(&cancel).expect("a buffer");
        assert_eq!((one.len(), one.as_ptr().addr() % BUFFER_ALIGNMENT), (8192, 0));
        one[0] = 7;
        assert!(pool.is_empty());
        drop(one);
        assert_eq!(pool.take(&cancel).expect("the one that came back")[0], 7);
        drop(two);
    }

    #[test]
    fn buffers_of_any_length_are_zeros_where_direct_reads_want_them() {
        for len in [1, 4096, 70_000, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 5, 5 * HUGE_PAGE] {
            let mut buf = AlignedBuf::zeroed(len).expect("a buffer");
            let alignment = if len >= HUGE_PAGE { HUGE_PAGE } else { BUFFER_ALIGNMENT };
            assert_eq!((buf.len(), buf.as_ptr().addr() % alignment), (len, 0));
            assert!(buf.iter().all(|byte| *byte == 0));
            buf.fill(7);
        }
    }

    #[test]
    fn memory_that_the_system_refuses_is_an_error_and_the_pool_lives_on() {
        let pool = BufferPool::new(1, 1 << 60);
        for _ in 0..2 {
            let refused = pool.take(&Cancel::new()).expect_err("no machine has so much");
            assert!(matches!(refused, Untaken::Memory(_)), "{refused:?}");
        }
    }

    #[test]
    fn a_wait_for_a_buffer_ends_with_the_work() {
        let cancel = Cancel::new();
        let pool = BufferPool::new(1, 4096);
        let _held = pool.take(&cancel).expect("the only buffer");
        std::thread::scope(|s| {
            let waiter = s.spawn(|| pool.take(&cancel).err());
            cancel.cancel(Reason::Requested);
            assert_eq!(waiter.join().expect("the waiter ends"), Some(Untaken::Stopped));
        });
    }
}
