//! JSON that is read strictly: a key that stands twice in an object is an error, which most readers ignore.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Parses one JSON value.
///
/// # Errors
/// If the text is no JSON, or an object has a key twice.
pub fn strict_json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str::<Strict>(text).map(|Strict(value)| value)
}

/// Parses a log of `--log-format json`, in which every line is an object.
///
/// # Panics
/// If a line is anything else.
#[track_caller]
pub fn strict_log(text: &str) -> Vec<Value> {
    let parse = |line| match strict_json(line) {
        Ok(value) if value.is_object() => value,
        other => panic!("{other:?}: {line}"),
    };
    text.lines().map(parse).collect()
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Strict(value)) = entries.next_element()? {
            all.push(value);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Strict(value) = entries.next_value()?;
            if all.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format!("the key {key:?} stands twice")));
            }
        }
        Ok(all.into())
    }
}

#[test]
fn a_key_that_stands_twice_is_an_error_at_any_depth() {
    for twice in [r#"{"a":1,"a":1}"#, r#"[{"b":{"name":"x","id":2,"name":"y"}}]"#] {
        let error = strict_json(twice).unwrap_err().to_string();
        assert!(error.contains("stands twice"), "{error}");
    }
    let once = r#"{"a":[1,-2,0.5,true,null,"text"],"b":{"a":{}}}"#;
    assert_eq!(strict_json(once).unwrap().to_string(), once);
}
