//! Tests of the engine's stores with the test doubles that all crates share, which use the engine as every
//! other crate does.

mod fenced;
mod limited;
mod retrying;
