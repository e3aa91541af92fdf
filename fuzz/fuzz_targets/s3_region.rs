//! Any response of a store: the only part that snapferry itself parses gives the name of a region, or
//! nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapferry_s3::region_in;

fuzz_target!(|answer: &[u8]| {
    if let Some(region) = region_in(answer) {
        // The name goes into a message and nowhere else. It must not contain terminal control sequences.
        assert!(!region.is_empty() && region.len() <= 64);
        assert!(region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    }
});
