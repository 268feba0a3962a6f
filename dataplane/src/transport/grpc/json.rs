//! `google.protobuf.Struct` as JSON text.

use prost_types::{Struct, Value, value::Kind};
use serde::{
    Serialize, Serializer,
    ser::{Error as _, SerializeMap, SerializeSeq},
};
use serde_json::value::{RawValue, to_raw_value};

/// Whole numbers up to here have one double each, so they are what the client wrote.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0; // 2^53

/// An object.
pub(super) fn object(fields: &Struct) -> serde_json::Result<Box<RawValue>> {
    to_raw_value(&Object(fields))
}

/// A list of objects.
pub(super) fn list(objects: &[Struct]) -> serde_json::Result<Box<RawValue>> {
    to_raw_value(&objects.iter().map(Object).collect::<Vec<_>>())
}

struct Object<'a>(&'a Struct);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.fields.len()))?;
        for (name, value) in &self.0.fields {
            map.serialize_entry(name, &Any(value))?;
        }
        map.end()
    }
}

struct Any<'a>(&'a Value);

impl Serialize for Any<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0.kind {
            None | Some(Kind::NullValue(_)) => serializer.serialize_unit(),
            Some(Kind::BoolValue(b)) => serializer.serialize_bool(*b),
            Some(Kind::StringValue(text)) => serializer.serialize_str(text),
            Some(Kind::NumberValue(n)) if !n.is_finite() => Err(S::Error::custom(format!("{n} is no number in JSON"))),
            // Many model servers refuse max_tokens: 100.0.
            Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() <= EXACT_MAX => {
                serializer.serialize_i64(*n as i64)
            }
            Some(Kind::NumberValue(n)) => serializer.serialize_f64(*n),
            Some(Kind::StructValue(fields)) => Object(fields).serialize(serializer),
            Some(Kind::ListValue(list)) => {
                let mut seq = serializer.serialize_seq(Some(list.values.len()))?;
                for value in &list.values {
                    seq.serialize_element(&Any(value))?;
                }
                seq.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prost_types::ListValue;

    use super::*;

    fn with(kind: Kind) -> Struct {
        Struct { fields: [("k".to_owned(), Value { kind: Some(kind) })].into() }
    }

    #[test]
    fn values_are_what_a_client_would_have_written() {
        let inner = with(Kind::StringValue("a\"b".into()));
        for (kind, want) in [
            (Kind::NumberValue(100.0), "100"),
            (Kind::NumberValue(-0.25), "-0.25"),
            (Kind::NumberValue(EXACT_MAX), "9007199254740992"),
            (Kind::NumberValue(1e300), "1e300"),
            (Kind::BoolValue(true), "true"),
            (Kind::NullValue(0), "null"),
            (Kind::StructValue(inner.clone()), r#"{"k":"a\"b"}"#),
            (
                Kind::ListValue(ListValue {
                    values: vec![Value { kind: None }, Value { kind: Some(Kind::BoolValue(false)) }],
                }),
                "[null,false]",
            ),
        ] {
            assert_eq!(object(&with(kind)).unwrap().get().replace("1e+300", "1e300"), format!("{{\"k\":{want}}}"));
        }
        assert_eq!(list(&[inner, Struct::default()]).unwrap().get(), r#"[{"k":"a\"b"},{}]"#);
    }

    #[test]
    fn what_json_has_no_word_for_is_refused() {
        for n in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(object(&with(Kind::NumberValue(n))).is_err());
        }
    }
}
