//! What the program says of itself, and how its command line helps: completions in real shells, colours,
//! version, names, the user's own configuration.

mod completions;
mod configuration;
mod names;
mod output;
mod version;
