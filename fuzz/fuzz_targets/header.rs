//! Any bytes: the parser refuses or reads, never panics; what it reads it would write so that it reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapferry_qcow2::Header;
use snapferry_base::units::{ByteCount, to_u64};

fuzz_target!(|start: &[u8]| {
    // As the file's only bytes, and as the first of a file in which every table has its place.
    for file_len in [ByteCount(to_u64(start.len())), ByteCount(u64::MAX)] {
        if let Ok(header) = Header::parse(start, file_len) {
            let mut written = Vec::new();
            header.write(&mut written);
            assert_eq!(Header::parse(&written, file_len), Ok(header));
        }
    }
});
