//! Any bytes as a body of zstd: it decodes to exactly one cluster, twice alike and whatever follows it, or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapferry_engine::compress::{Codec, Decoder};
use snapferry_base::units::ClusterBits;

fuzz_target!(|body: &[u8]| {
    for bits in [9, 12, 16] {
        let cluster = ClusterBits::new(bits).expect("a cluster size");
        let mut decoder = Decoder::new(Codec::Zstd, cluster).expect("a decoder");
        let (mut one, mut other) = (vec![0xaa; cluster.len()], vec![0x55; cluster.len()]);
        let decoded = decoder.decode(body, &mut one);
        assert_eq!(decoder.decode(body, &mut other), decoded);
        if decoded.is_ok() {
            assert!(one == other, "bytes that nobody wrote");
            // A body is followed by the next one, up to the end of its last sector.
            let mut followed = body.to_vec();
            followed.extend([0x5a; 100]);
            other.fill(0);
            assert_eq!(decoder.decode(&followed, &mut other), Ok(()));
            assert!(one == other, "what follows a body changes it");
        }
    }
});
