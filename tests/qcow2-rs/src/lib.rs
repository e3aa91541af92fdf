//! Nothing but tests: see `tests/reads_ours.rs`.
