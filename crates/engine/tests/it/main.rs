//! Tests of the engine with the test doubles that all crates share, which use the engine as every other crate
//! does.

mod base;
mod fenced;
mod folder;
mod incremental;
mod limited;
mod manifests;
mod retrying;
mod support;
