//! Buffers that O_DIRECT takes, and pools of them that bound the memory of a conversion.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::mm::{Advice, madvise};

use crate::cancel::{Cancel, Stopped};

/// Alignment of every buffer's address, in bytes. The largest logical block size in the field is 4096, and a page is
/// what DMA engines ask for at most.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// Alignment of buffers that are at least as long: x86-64's huge page. The kernel pins one of them for a direct read where it would pin
/// 512 small ones.
const HUGE_PAGE: usize = 2 << 20;

/// Heap memory whose address is a multiple of [`BUFFER_ALIGNMENT`]. Its length is fixed.
pub struct AlignedBuf {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is owned by the value alone, and bytes may be used from any thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access is read-only, through `Deref`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zeros.
    ///
    /// # Panics
    /// If `len` is zero or more than half the address space.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        assert!(len > 0, "a buffer holds something");
        let alignment = if len >= HUGE_PAGE { HUGE_PAGE } else { BUFFER_ALIGNMENT };
        let layout = Layout::from_size_align(len, alignment).expect("a length that fits the address space");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        if len >= HUGE_PAGE {
            // Whole huge pages only, so that no neighbour on the heap is advised along. Before the first touch: what is small by
            // then stays small. A kernel without huge pages refuses, and nothing is lost.
            let whole = len / HUGE_PAGE * HUGE_PAGE;
            // SAFETY: the range was just allocated for us, and this advice changes no contents.
            let _ = unsafe { madvise(start.as_ptr().cast(), whole, Advice::LinuxHugepage) };
        }
        // SAFETY: `len` bytes were allocated at `start`.
        unsafe { start.as_ptr().write_bytes(0, len) };
        Self { start, layout }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `layout.size()` initialised bytes that live as long as self, and no one writes them while
        // they are borrowed shared.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and self is borrowed uniquely.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.layout.size())
    }
}

/// A fixed number of buffers of one length. Taking waits until one is free: that is what bounds memory. Each is allocated when it
/// is first needed.
#[derive(Debug)]
pub struct BufferPool {
    len: usize,
    free: Receiver<Option<AlignedBuf>>,
    back: Sender<Option<AlignedBuf>>,
}

impl BufferPool {
    /// At most `count` buffers of `len` bytes.
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

    /// Waits for a buffer. What it holds is whatever its last user left.
    ///
    /// # Errors
    /// When the work is cancelled first.
    pub fn take(&self, cancel: &Cancel) -> Result<PooledBuf, Stopped> {
        let slot = select! {
            recv(self.free) -> slot => slot.map_err(|_| Stopped)?,
            recv(cancel.closed()) -> _ => return Err(Stopped),
        };
        let buf = slot.unwrap_or_else(|| AlignedBuf::zeroed(self.len));
        Ok(PooledBuf { buf: Some(buf), back: self.back.clone() })
    }

    /// Whether a `take` would have to wait now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }
}

/// A buffer on loan from its pool; it goes back when dropped, from whatever thread.
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
        // Never blocks: the channel has a place for every buffer there is. A pool that is gone frees the buffer instead.
        let _ = self.back.try_send(self.buf.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Reason;

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
    fn a_wait_for_a_buffer_ends_with_the_work() {
        let cancel = Cancel::new();
        let pool = BufferPool::new(1, 4096);
        let _held = pool.take(&cancel).expect("the only buffer");
        std::thread::scope(|s| {
            let waiter = s.spawn(|| pool.take(&cancel).err());
            cancel.cancel(Reason::Asked);
            assert_eq!(waiter.join().expect("the waiter ends"), Some(Stopped));
        });
    }
}
