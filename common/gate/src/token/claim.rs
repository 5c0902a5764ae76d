//! Takes the name of a claim as an operator writes it (`groups`, `realm_access.roles`, `https://example.com/roles`); gives where to
//! find it in a token; refuses empty segments, and values on the way that are not objects.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

/// Where a claim is: names from the outside in, separated by dots. One that starts with `https://` is a single claim's whole name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimPath(Vec<String>);

/// A value on the way to the claim is there but is not an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotAnObject;

impl ClaimPath {
    /// The claim's value; null counts as absent.
    pub(crate) fn find<'a>(&self, claims: &'a Map<String, Value>) -> Result<Option<&'a Value>, NotAnObject> {
        let mut table = claims;
        for (at, name) in self.0.iter().enumerate() {
            match table.get(name) {
                None | Some(Value::Null) => return Ok(None),
                Some(found) if at + 1 == self.0.len() => return Ok(Some(found)),
                Some(Value::Object(inner)) => table = inner,
                Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                    return Err(NotAnObject);
                }
            }
        }
        Ok(None)
    }

    /// The same for whom it is information: a claim that cannot be there is absent.
    pub fn value<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        self.find(claims).ok().flatten()
    }

    /// The claim of the token in which this one lies.
    pub(crate) fn outermost(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl fmt::Debug for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClaimPath {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let segments: Vec<String> = if text.starts_with("https://") {
            vec![text.to_owned()]
        } else {
            text.split('.').map(str::to_owned).collect()
        };
        if segments.iter().any(String::is_empty) {
            return Err(format!(
                "{text:?} is not the name of a claim: write \"groups\", \"realm_access.roles\" or \"https://example.com/roles\""
            ));
        }
        Ok(Self(segments))
    }
}

impl<'de> Deserialize<'de> for ClaimPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for ClaimPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for ClaimPath {
    fn schema_name() -> Cow<'static, str> {
        "ClaimPath".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn find<'a>(path: &str, claims: &'a Value) -> Result<Option<&'a Value>, NotAnObject> {
        path.parse::<ClaimPath>().unwrap().find(claims.as_object().unwrap())
    }

    #[test]
    fn dots_go_inwards_and_urls_are_one_name() {
        let claims = json!({
            "groups": ["a"],
            "realm_access": { "roles": ["r"] },
            "https://example.com/roles": "x",
            "none": null,
        });
        assert_eq!(find("groups", &claims), Ok(Some(&json!(["a"]))));
        assert_eq!(find("realm_access.roles", &claims), Ok(Some(&json!(["r"]))));
        assert_eq!(find("https://example.com/roles", &claims), Ok(Some(&json!("x"))));
        assert_eq!(find("realm_access.groups", &claims), Ok(None));
        assert_eq!(find("none", &claims), Ok(None));
        assert_eq!(find("none.deeper", &claims), Ok(None));
        assert_eq!(find("groups.deeper", &claims), Err(NotAnObject));
        for bad in ["", ".", "a.", ".a", "a..b"] {
            assert!(bad.parse::<ClaimPath>().is_err(), "{bad}");
        }
    }
}
