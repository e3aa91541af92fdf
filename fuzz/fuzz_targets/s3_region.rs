//! Any answer of a store: the one thing that we read in it ourselves is a region's name, or nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapferry_s3::region_in;

fuzz_target!(|answer: &[u8]| {
    if let Some(region) = region_in(answer) {
        // It goes into a message and into nothing else; a terminal must not take it for commands.
        assert!(!region.is_empty() && region.len() <= 64);
        assert!(region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    }
});
