//! Tests of the engine's stores on the doubles that all crates share, which are built on the engine as anything else is.

mod fenced;
mod limited;
mod retrying;
