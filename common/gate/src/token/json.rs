//! Takes the bytes of a header or a claims set; gives its members; refuses what two JSON parsers could read differently: duplicate
//! members at any depth, trailing bytes, NUL in names or strings, nesting deeper than 32, numbers out of range, anything but an object.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// No issuer nests claims this deep (security.md 7).
const DEPTH: usize = 32;

/// The members of a JSON object, or nothing.
pub(super) fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0 }.deserialize(&mut json).ok()?;
    json.end().ok()?;
    if let Value::Object(members) = value { Some(members) } else { None }
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn inner<E: Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH {
            Err(E::custom("nested too deep"))
        } else {
            Ok(Self { depth: self.depth + 1 })
        }
    }
}

fn text<E: Error>(text: String) -> Result<String, E> {
    if text.contains('\0') { Err(E::custom("NUL in a string")) } else { Ok(text) }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        text(value.to_owned()).map(Value::String)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut all = Vec::new();
        while let Some(one) = list.next_element_seed(inner)? {
            all.push(one);
        }
        Ok(Value::Array(all))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut all = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(inner)?;
            if all.insert(text(name)?, value).is_some() {
                return Err(A::Error::custom("a member given twice"));
            }
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nested(depth: usize) -> String {
        format!("{}{}{}", "{\"a\":".repeat(depth - 1), "{}", "}".repeat(depth - 1))
    }

    #[test]
    fn good_objects_are_read_whole() {
        let text = br#" {"s":"x\u00e9","n":-1,"u":18446744073709551615,"f":1.5,"b":true,"z":null,"l":[1,{"a":[]}]} "#;
        assert_eq!(Value::Object(object(text).unwrap()), serde_json::from_slice::<Value>(text).unwrap());
        assert!(object(nested(32).as_bytes()).is_some());
    }

    #[test]
    fn what_could_be_read_two_ways_is_refused() {
        for bad in [
            "",
            "[]",
            "\"a\"",
            "1",
            "null",
            "{\"a\":1,\"a\":1}",
            "{\"a\":1,\"\\u0061\":2}",
            "{\"x\":{\"a\":1,\"a\":2}}",
            "{\"x\":[{\"a\":1,\"a\":2}]}",
            "{} x",
            "{}{}",
            "{}\0",
            "\u{feff}{}",
            "{'a':1}",
            "{a:1}",
            "{\"a\":1,}",
            "{\"a\":\"\\u0000\"}",
            "{\"a\\u0000\":1}",
            "{\"a\":\"\0\"}",
            "{\"a\":\"\\ud800\"}",
            "{\"a\":1e999}",
            "{\"a\":NaN}",
            "{\"a\":01}",
            "{\"a\":/**/1}",
            "{\"a\":1",
        ] {
            assert!(object(bad.as_bytes()).is_none(), "{bad:?}");
        }
        assert!(object(nested(33).as_bytes()).is_none());
        assert!(object(format!("{{\"a\":{}", "[".repeat(5000)).as_bytes()).is_none());
        assert!(object(b"{\"a\":\"\xff\"}").is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(members) = object(&bytes) {
                prop_assert_eq!(Value::Object(members), serde_json::from_slice::<Value>(&bytes).unwrap());
            }
        }
    }
}
