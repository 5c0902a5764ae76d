//! Takes roles, rules and tests as configuration files write them; gives plain values; refuses unknown keys, empty lists and values
//! of the wrong kind where they stand. What they mean together is `compile`'s business.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use postern_base::id::{IssuerName, ServiceName};
use postern_base::value::{OneOrMany, Span};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::limit::Rate;

/// One entry of `[roles]`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleFile {
    /// Who has this role: any of these.
    #[serde(deserialize_with = "filled")]
    pub any: OneOrMany<String>,
    /// What their token must carry besides.
    pub with: Option<WithFile>,
}

/// One entry of `[[services.X.rules]]` or `[[rules]]`. All keys must match, one entry of each list.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleFile {
    /// Shown in logs, metrics and refusals.
    pub name: Option<String>,
    /// Who: `role:NAME`, `<issuer>/<kind>:<value>`, or `*`.
    #[serde(default, deserialize_with = "filled")]
    pub allow: OneOrMany<String>,
    /// Who is refused, whatever else allows it.
    #[serde(default, deserialize_with = "filled")]
    pub deny: OneOrMany<String>,
    /// What: `METHOD[,METHOD] PATH`, or `CONNECT` for services of kind tcp.
    #[serde(default, deserialize_with = "filled")]
    pub to: OneOrMany<String>,
    /// What the token must carry.
    pub with: Option<WithFile>,
    /// The networks it must come from.
    #[serde(default, deserialize_with = "networks")]
    #[schemars(with = "OneOrMany<String>")]
    pub from: OneOrMany<IpNet>,
    /// How fast, such as `20/s per user`; the first may come all at once.
    pub rate: Option<Rate>,
    /// How many in a window that begins with the first, such as `10000/day per client`.
    pub quota: Option<Rate>,
}

/// What a token must carry: all keys, any entry of each list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WithFile {
    /// `"a b"` = both, a list = either.
    pub scope: OneOrMany<String>,
    pub acr: OneOrMany<String>,
    /// How long ago the person may have logged in (`auth_time`).
    pub max_age: Option<Span>,
    /// Claim path (without `claims.`) to the strings, numbers and booleans of which one must be there.
    pub claims: BTreeMap<String, Vec<Value>>,
    /// Bound to a key of the caller (DPoP, mutual TLS).
    pub bound: bool,
}

/// One entry of `[[tests]]`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestFile {
    /// Shown where it fails.
    pub name: String,
    /// Who calls.
    pub r#as: TestCaller,
    /// `METHOD SERVICE/PATH` or `CONNECT SERVICE`, as in `postern can`.
    pub call: String,
    /// `allow`, `deny`, `allow: RULE` or `deny: RULE`.
    pub expect: String,
}

/// A caller that a test makes up, in the token's words.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TestCaller {
    /// May be left out when there is only one.
    pub issuer: Option<IssuerName>,
    /// What people call the caller. Default: the subject.
    pub user: Option<String>,
    /// What the issuer knows the caller by. Default: `test`.
    pub subject: Option<String>,
    /// The OAuth client.
    pub client: Option<String>,
    /// Groups as the token names them.
    pub groups: OneOrMany<String>,
    /// Scopes of the token.
    pub scope: OneOrMany<String>,
    /// Roles as the token names them (`token-role:`).
    pub roles: OneOrMany<String>,
    /// How strong the login was.
    pub acr: Option<String>,
    /// How long ago the person logged in; left out, the token does not say.
    pub auth_age: Option<Span>,
    /// Other claims, nested as in the token.
    pub claims: Map<String, Value>,
    /// Whether the token is bound to a key and came with its proof.
    pub bound: bool,
    /// Whence it calls. Default: an address that is in no network but `0.0.0.0/0`.
    pub ip: Option<IpAddr>,
}

/// What a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceKind {
    /// Requests with methods and paths.
    #[default]
    Http,
    /// Bytes; rules say `CONNECT`.
    Tcp,
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        })
    }
}

/// What policy needs to know of a service.
#[derive(Debug, Clone, Default)]
pub struct ServiceRules {
    pub kind: ServiceKind,
    /// Whose tokens it takes; empty = all issuers of the file.
    pub issuers: Vec<IssuerName>,
    /// Callers whom no rule names do not see it.
    pub hidden: bool,
    pub rules: Vec<RuleFile>,
}

/// Everything that makes a policy.
#[derive(Debug, Clone, Default)]
pub struct PolicySource {
    pub issuers: Vec<IssuerName>,
    pub roles: BTreeMap<String, RoleFile>,
    pub services: BTreeMap<ServiceName, ServiceRules>,
    /// For all services; they can only deny.
    pub rules: Vec<RuleFile>,
    pub tests: Vec<TestFile>,
}

/// A list that was written has an entry: a template that came out empty must not widen (or silence) a rule.
struct Filled<T>(OneOrMany<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Filled<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = OneOrMany::deserialize(deserializer)?;
        if list.0.is_empty() {
            return Err(D::Error::custom("the list is empty: name at least one, or leave the key out"));
        }
        Ok(Self(list))
    }
}

fn filled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OneOrMany<String>, D::Error> {
    Filled::deserialize(deserializer).map(|list| list.0)
}

struct Network(IpNet);

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|_| {
            D::Error::custom(format!(
                "{text:?} is not a network: write \"10.0.0.0/8\", \"2001:db8::/32\" or, for one address, \"10.1.2.3/32\""
            ))
        })
    }
}

fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OneOrMany<IpNet>, D::Error> {
    let list: Filled<Network> = Filled::deserialize(deserializer)?;
    Ok(OneOrMany(list.0.0.into_iter().map(|network| network.0).collect()))
}

/// The keys of `with`, parsed as keys so that an error points at the key itself.
enum WithKey {
    Scope,
    Acr,
    MaxAge,
    Bound,
    Claim(String),
}

impl<'de> Deserialize<'de> for WithKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = String::deserialize(deserializer)?;
        match key.as_str() {
            "scope" => Ok(Self::Scope),
            "acr" => Ok(Self::Acr),
            "max_age" => Ok(Self::MaxAge),
            "bound" => Ok(Self::Bound),
            "claims" => Err(D::Error::custom(
                "a claim's path is one key in quotes, as in \"claims.department\" = \"finance\"",
            )),
            _ => match key.strip_prefix("claims.") {
                Some(path)
                    if path.starts_with("https://") || path.split('.').all(|part| !part.is_empty()) =>
                {
                    Ok(Self::Claim(path.to_owned()))
                }
                Some(_) => Err(D::Error::custom(format!("{key:?} has an empty part"))),
                None => {
                    Err(D::Error::unknown_field(&key, &["scope", "acr", "max_age", "bound", "claims.NAME"]))
                }
            },
        }
    }
}

/// `true`; its opposite asks for nothing and so is left out.
struct True(bool);

impl<'de> Deserialize<'de> for True {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if bool::deserialize(deserializer)? {
            return Ok(Self(true));
        }
        Err(D::Error::custom("write bound = true, or leave it out: every token is good enough then"))
    }
}

struct ClaimValues(Vec<Value>);

impl<'de> Deserialize<'de> for ClaimValues {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = match Value::deserialize(deserializer)? {
            Value::Array(list) => list,
            one @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
                vec![one]
            }
        };
        if values.is_empty() || values.iter().any(|v| !(v.is_string() || v.is_number() || v.is_boolean())) {
            return Err(D::Error::custom(
                "a claim is compared with a string, number or boolean, or a list of them",
            ));
        }
        Ok(Self(values))
    }
}

impl<'de> Deserialize<'de> for WithFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Conditions;
        impl<'de> Visitor<'de> for Conditions {
            type Value = WithFile;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table such as { scope = \"invoices:read\" }")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WithFile, A::Error> {
                let mut with = WithFile::default();
                while let Some(key) = map.next_key()? {
                    match key {
                        WithKey::Scope => with.scope = map.next_value::<Filled<String>>()?.0,
                        WithKey::Acr => with.acr = map.next_value::<Filled<String>>()?.0,
                        WithKey::MaxAge => with.max_age = Some(map.next_value()?),
                        WithKey::Bound => with.bound = map.next_value::<True>()?.0,
                        WithKey::Claim(path) => {
                            with.claims.insert(path, map.next_value::<ClaimValues>()?.0);
                        }
                    }
                }
                Ok(with)
            }
        }
        deserializer.deserialize_map(Conditions)
    }
}

impl JsonSchema for WithFile {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "WithFile".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let texts = generator.subschema_for::<OneOrMany<String>>();
        let span = generator.subschema_for::<Span>();
        let scalar = json_schema!({ "type": ["string", "number", "boolean"] });
        let with = |words: &str, mut schema: Schema| {
            schema.insert("description".to_owned(), words.into());
            schema
        };
        json_schema!({
            "type": "object",
            "properties": {
                "scope": with("`\"a b\"` asks for both scopes, a list for either.", texts.clone()),
                "acr": with("How strong the login was: one of these values of `acr`.", texts),
                "max_age": with("How long ago the person may have logged in (`auth_time`).", span),
                "bound": { "description": "Bound to a key of the caller (DPoP, mutual TLS).", "const": true }
            },
            "patternProperties": {
                "^claims\\..": {
                    "description": "A claim by its path, and the string, number or boolean, or the list of them, of which one must be there.",
                    "anyOf": [scalar, { "type": "array", "items": scalar, "minItems": 1 }]
                }
            },
            "additionalProperties": false
        })
    }
}
