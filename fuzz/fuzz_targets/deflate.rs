//! Any bytes, repeated and cut to any length, compressed by the encoder around ISA-L's match finder: they fit
//! or not as their length says, and another library inflates them to the same bytes. A compressor that was
//! used before gives the same as a new one.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use snapferry_isal::Deflate;

#[derive(Arbitrary, Debug)]
struct Case {
    bytes: Vec<u8>,
    /// The input is the bytes, again and again, to this length.
    len: u32,
    /// XORed onto each repetition, so that repetitions are not all the same.
    change: u8,
    room: u32,
}

/// Largest input: several blocks of tokens.
const LONGEST: u32 = 400_000;

fuzz_target!(|case: Case| {
    let len = if case.bytes.is_empty() { 0 } else { case.len % LONGEST };
    let len = usize::try_from(len).expect("32 bits fit");
    let mut input = Vec::with_capacity(len);
    let mut round = 0_u8;
    while input.len() < len {
        let at = usize::from(round) * 7 % case.bytes.len().max(1);
        input.extend_from_slice(&case.bytes);
        if let Some(byte) = input.len().checked_sub(at + 1).and_then(|at| input.get_mut(at)) {
            *byte ^= case.change;
        }
        round = round.wrapping_add(1);
    }
    input.truncate(len);

    let mut compressor = Deflate::new().expect("a compressor");
    let mut out = vec![0; len + len / 1000 + 64];
    let made = compressor.deflate(&input, &mut out).expect("room for stored blocks");
    let mut back = vec![0; len];
    let inflated = libdeflater::Decompressor::new().deflate_decompress(&out[..made], &mut back);
    assert_eq!(inflated, Ok(len));
    assert!(back == input);

    // A used compressor, and any room.
    let mut again = vec![0; usize::try_from(case.room).expect("32 bits fit") % (out.len() + 1)];
    match compressor.deflate(&input, &mut again) {
        Some(len) => assert!(again[..len] == out[..made]),
        None => assert!(again.len() < made + 8, "{made} bytes fit"),
    }
});
