//! Any bytes as a header: the parser never panics. Writing a parsed header and parsing it again gives the
//! same header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapferry_base::units::{ByteCount, to_u64};
use snapferry_qcow2::Header;

fuzz_target!(|start: &[u8]| {
    // Once as the whole file, and once as the start of a file that is large enough for every table.
    for file_len in [ByteCount(to_u64(start.len())), ByteCount(u64::MAX)] {
        if let Ok(header) = Header::parse(start, file_len) {
            let mut written = Vec::new();
            header.write(&mut written);
            assert_eq!(Header::parse(&written, file_len), Ok(header));
        }
    }
});
