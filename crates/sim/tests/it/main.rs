//! The simulated store from outside, and the program `snapferry-sim`.

#![allow(clippy::unwrap_used)]

mod program;
mod store;
