//! Values from Redis. Every user with write access may have written any bytes there.

use std::collections::BTreeMap;

use redis::{FromRedisValue, ParsingError, Value};

use super::QueueError;

/// A text value. Bytes that are not UTF-8 are replaced, so that one damaged value hides no others.
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

/// Collects alternating names and values into a map.
pub(super) fn paired(texts: Vec<Text>) -> BTreeMap<String, String> {
    let mut texts = texts.into_iter();
    std::iter::from_fn(|| Some((texts.next()?.0, texts.next()?.0))).collect()
}

/// Returns the value. If it can't be read, logs a warning and returns None, so that one damaged entry of a
/// list does not hide the others.
pub(super) fn or_warn<T>(read: Result<T, QueueError>) -> Option<T> {
    read.map_err(|error| tracing::warn!("left out: {error}")).ok()
}
