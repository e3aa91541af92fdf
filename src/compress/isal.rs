//! Deflate by Intel's ISA-L at its level 1: 2.5 times as fast as libdeflate's fastest, a little larger.
//!
//! Level 1 and not 3: level 3's match finder depends on the CPU, so that its bytes differ from machine to machine; 0 to 2 give the
//! same bytes from SSE4.2 on (x86-64-v2).
#![allow(unsafe_code)]

use isal_sys::igzip_lib::{
    COMP_OK, ISAL_DEF_LVL1_EXTRA_LARGE, NO_FLUSH, isal_deflate_stateless, isal_deflate_stateless_init, isal_zstream,
};

/// For the manifest. The level buffer's size is part of it: it decides where deflate blocks end.
pub(super) const DESCRIPTION: &str = "isa-l 2.31 level 1, 32 KiB window";

pub(super) struct Deflate {
    stream: Box<isal_zstream>,
    /// ISA-L's hash table and token buffer; the stream points into it during a call.
    level_buffer: Vec<u8>,
}

impl Deflate {
    pub(super) fn new() -> Self {
        // SAFETY: isal_zstream is plain data (integers, raw pointers and arrays of them), for which all zeros is a value.
        let stream = unsafe { Box::<isal_zstream>::new_zeroed().assume_init() };
        let len = usize::try_from(ISAL_DEF_LVL1_EXTRA_LARGE).expect("half a megabyte");
        Self { stream, level_buffer: vec![0; len] }
    }

    pub(super) fn encode(&mut self, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        let stream: &mut isal_zstream = &mut self.stream;
        // SAFETY: the stream is exclusively ours and fully initialised; this resets its fields and writes nothing else.
        unsafe { isal_deflate_stateless_init(stream) };
        stream.level = 1;
        stream.level_buf = self.level_buffer.as_mut_ptr();
        stream.level_buf_size = ISAL_DEF_LVL1_EXTRA_LARGE;
        stream.end_of_stream = 1;
        stream.flush = u16::try_from(NO_FLUSH).expect("a flag");
        // ISA-L takes a mutable pointer and only reads from it.
        stream.next_in = cluster.as_ptr().cast_mut();
        stream.avail_in = u32::try_from(cluster.len()).expect("a cluster is at most 2 MiB");
        stream.next_out = out.as_mut_ptr();
        stream.avail_out = u32::try_from(out.len()).expect("a body is shorter than its cluster");
        // SAFETY: next_in and next_out point to live slices of avail_in and avail_out bytes, level_buf to level_buf_size bytes, and
        // none of them overlap: out and the level buffer are unique borrows. The pointers are not used after the call.
        let outcome = unsafe { isal_deflate_stateless(stream) };
        // STATELESS_OVERFLOW is the one failure that valid parameters leave: the body is no smaller than the cluster.
        let done = outcome == i32::try_from(COMP_OK).expect("a code");
        done.then(|| usize::try_from(self.stream.total_out).expect("32 bits fit"))
    }
}

// SAFETY: the raw pointers inside the stream are set anew before each call and not followed between calls.
unsafe impl Send for Deflate {}
