//! Any bytes as the body of an error response: the message is one line of limited length, without control
//! characters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapferry_ibmcloud::vpc::Refusal;

/// Limit for eight errors of three texts each, cut to 400 characters of up to four bytes, with the
/// separators.
const LONGEST: usize = 64 << 10;

fuzz_target!(|input: (u16, &[u8])| {
    let (status, body) = input;
    let refusal = Refusal::read(status, body, None);
    let shown = refusal.to_string();
    assert!(shown.len() < LONGEST, "{} bytes", shown.len());
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    assert!(!refusal.faults.is_empty());
    let _class = refusal.class();
});
