//! Takes the small values of a configuration file as text; gives durations, sizes and lists; refuses what has no unit or no meaning.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{BoolDeserializer, I64Deserializer, MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserialize, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

/// A duration written with its unit: `"500ms"`, `"30s"`, `"5m"`, `"1h"`, `"7d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A size in bytes written with its unit: `"512B"`, `"32KiB"`, `"8MiB"`, `"1GiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..at].parse().ok()?, text[at..].trim_start()))
}

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{text:?} is not a duration: write a number and a unit, such as \"500ms\", \"30s\", \"5m\", \"1h\" or \"7d\""
            )
        };
        let (number, unit) = number_and_unit(text).ok_or_else(refuse)?;
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            "d" => 24 * 60 * 60 * 1000,
            _ => return Err(refuse()),
        };
        Ok(Self(Duration::from_millis(number.checked_mul(millis).ok_or_else(refuse)?)))
    }
}

impl fmt::Display for Span {
    /// In the largest unit that says it whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        match units.into_iter().find(|(_, size)| millis > 0 && millis.is_multiple_of(*size)) {
            Some((unit, size)) => write!(f, "{}{unit}", millis / size),
            None => write!(f, "{millis}ms"),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{text:?} is not a size: write a number and a unit, such as \"512B\", \"32KiB\", \"8MiB\" or \"1GiB\""
            )
        };
        let (number, unit) = number_and_unit(text).ok_or_else(refuse)?;
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(refuse()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(refuse)
    }
}

macro_rules! from_text {
    ($type:ident, $pattern:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}
from_text!(Span, "^[0-9]+ ?(ms|s|m|h|d)$");
from_text!(Size, "^[0-9]+ ?(B|KiB|MiB|GiB)$");

/// One value or a list of them: `"a"` and `["a", "b"]` alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A visitor rather than an untagged enum: the error of the value inside survives.
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
                T::deserialize(StrDeserializer::new(text)).map(|one| vec![one])
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Vec<T>, E> {
                let value: BoolDeserializer<E> = value.into_deserializer();
                T::deserialize(value).map(|one| vec![one])
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Vec<T>, E> {
                T::deserialize(I64Deserializer::new(number)).map(|one| vec![one])
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = list.next_element()? {
                    all.push(one);
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(Either(PhantomData)).map(Self)
    }
}

/// A limit, or `"off"` for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrOff<T> {
    Off,
    At(T),
}

impl<T> OrOff<T> {
    /// The limit, if there is one.
    pub fn limit(self) -> Option<T> {
        match self {
            Self::Off => None,
            Self::At(limit) => Some(limit),
        }
    }
}

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for OrOff<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match &*Cow::<'de, str>::deserialize(deserializer)? {
            "off" => Ok(Self::Off),
            text => text.parse().map(Self::At).map_err(|e| D::Error::custom(format!("{e}; or \"off\""))),
        }
    }
}

impl<T: JsonSchema> JsonSchema for OrOff<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}_or_off", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [generator.subschema_for::<T>(), { "const": "off" }] })
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany_{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_may_be_off() {
        let read = |text: &'static str| {
            let text: StrDeserializer<'_, serde::de::value::Error> = StrDeserializer::new(text);
            OrOff::<Span>::deserialize(text)
        };
        assert_eq!(read("off").unwrap().limit(), None);
        assert_eq!(read("5m").unwrap().limit(), Some(Span(Duration::from_mins(5))));
        assert!(read("never").unwrap_err().to_string().ends_with("; or \"off\""));
    }

    #[test]
    fn durations_and_sizes_need_units() {
        assert_eq!("500ms".parse::<Span>().unwrap().0, Duration::from_millis(500));
        for text in ["0ms", "1500ms", "90s", "5m", "36h", "7d"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("7d".parse::<Span>().unwrap().0, Duration::from_hours(168));
        assert_eq!("8MiB".parse::<Size>().unwrap().0, 8 << 20);
        for bad in ["", "30", "s", "-1s", "1.5s", "1 year", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        for bad in ["", "8", "8MB", "18446744073709551615GiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
