//! Any bytes as a zstd body: it decodes to exactly one cluster, or is refused. Decoding it again, or with
//! other bytes after it, gives the same result.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapferry_base::units::ClusterBits;
use snapferry_engine::compress::{Codec, Decoder};

fuzz_target!(|body: &[u8]| {
    for bits in [9, 12, 16] {
        let cluster = ClusterBits::new(bits).expect("a cluster size");
        let mut decoder = Decoder::new(Codec::Zstd, cluster).expect("a decoder");
        let (mut one, mut other) = (vec![0xaa; cluster.len()], vec![0x55; cluster.len()]);
        let decoded = decoder.decode(body, &mut one);
        assert_eq!(decoder.decode(body, &mut other), decoded);
        if decoded.is_ok() {
            assert!(one == other, "bytes that nobody wrote");
            // In an image, the next body follows, up to the end of the last sector.
            let mut followed = body.to_vec();
            followed.extend([0x5a; 100]);
            other.fill(0);
            assert_eq!(decoder.decode(&followed, &mut other), Ok(()));
            assert!(one == other, "what follows a body changes it");
        }
    }
});
