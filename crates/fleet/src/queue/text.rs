//! What Redis holds: whoever may write there may have written anything.

use std::collections::BTreeMap;

use redis::{FromRedisValue, ParsingError, Value};

use super::QueueError;

/// A text as it came; bytes that are no UTF-8 are replaced, so that one of them hides nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text(pub String);

impl FromRedisValue for Text {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        Ok(Self(match value {
            Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            other => String::from_redis_value(other)?,
        }))
    }
}

/// Names and values, which come one after the other.
pub(super) fn paired(texts: Vec<Text>) -> BTreeMap<String, String> {
    let mut texts = texts.into_iter();
    std::iter::from_fn(|| Some((texts.next()?.0, texts.next()?.0))).collect()
}

/// One of several things, unless it makes no sense: then it is left out with a word in the log, and does not hide the others.
pub(super) fn known<T>(read: Result<T, QueueError>) -> Option<T> {
    read.map_err(|error| tracing::warn!("left out: {error}")).ok()
}
