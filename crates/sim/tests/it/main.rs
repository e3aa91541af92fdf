//! Tests of the simulated store over its socket, and of the program `snapferry-sim`.

#![allow(clippy::unwrap_used)]

mod program;
mod store;
