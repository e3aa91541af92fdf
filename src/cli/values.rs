//! Parsers of options that take one of a few names. The help lists the names, and shells complete them.

use std::fmt::Display;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use snapferry_engine::compress::{Codec, Level};
use snapferry_engine::disk::ZeroPolicy;
use snapferry_fleet::queue::JobState;
use snapferry_fleet::replicate::BaseRule;
use snapferry_ibmcloud::vpc::model::ExportFormat;

use super::args::CodecChoice;
use super::skip_free::SkipFree;

/// Returns a parser of a type whose names are `names`.
fn of<T>(names: impl IntoIterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: Display> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|typed| typed.parse::<T>().map_err(|error| error.to_string()))
}

pub fn codecs() -> impl TypedValueParser<Value = Codec> {
    of(Codec::ALL.map(Codec::name))
}

pub fn codecs_and_none() -> impl TypedValueParser<Value = CodecChoice> {
    of(Codec::ALL.map(Codec::name).into_iter().chain(["none"]))
}

pub fn levels() -> impl TypedValueParser<Value = Level> {
    of(Level::ALL.map(Level::name))
}

pub fn skip_free() -> impl TypedValueParser<Value = SkipFree> {
    of(SkipFree::ALL.map(SkipFree::name))
}

pub fn base_rules() -> impl TypedValueParser<Value = BaseRule> {
    of(BaseRule::ALL.map(BaseRule::name))
}

pub fn zero_policies() -> impl TypedValueParser<Value = ZeroPolicy> {
    of(["discard", "write", "skip"])
}

pub fn states() -> impl TypedValueParser<Value = JobState> {
    of(JobState::ALL.map(JobState::name))
}

pub fn formats() -> impl TypedValueParser<Value = ExportFormat> {
    of(["qcow2", "vhd"])
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    /// Asserts that each name that a parser offers is one that it takes.
    fn takes_what_it_offers<T: Clone + Send + Sync>(parser: impl TypedValueParser<Value = T>) {
        let command = clap::Command::new("test");
        let names: Vec<_> = parser.possible_values().expect("names").collect();
        assert!(names.len() > 1, "{names:?}");
        for name in names {
            assert!(parser.parse_ref(&command, None, OsStr::new(name.get_name())).is_ok(), "{name:?}");
        }
        assert!(parser.parse_ref(&command, None, OsStr::new("nothing")).is_err());
    }

    #[test]
    fn codecs_are_parsed() {
        takes_what_it_offers(codecs());
    }

    #[test]
    fn codecs_and_none_are_parsed() {
        takes_what_it_offers(codecs_and_none());
    }

    #[test]
    fn levels_are_parsed() {
        takes_what_it_offers(levels());
    }

    #[test]
    fn zero_policies_are_parsed() {
        takes_what_it_offers(zero_policies());
    }

    #[test]
    fn states_are_parsed() {
        takes_what_it_offers(states());
    }

    #[test]
    fn formats_are_parsed() {
        takes_what_it_offers(formats());
    }
}
