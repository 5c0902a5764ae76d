//! Takes text from files, certificates and peers; gives names and ids that are well-formed by construction; refuses the rest.
//!
//! A name is a DNS label: 1 to 63 of `a-z`, `0-9` and `-`, neither first nor last a dash.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// Why some text is not a name or an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error(
        "{0:?} is not a name: use 1 to 63 lower-case letters, digits and dashes, with no dash first or last"
    )]
    Name(String),
    #[error("{0:?} is not a trust domain: use lower-case letters, digits, dots, dashes and underscores")]
    TrustDomain(String),
    #[error("{0:?} is not a SPIFFE id of an agent or a relay")]
    Spiffe(String),
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_name(text) { Ok(Self(text.into())) } else { Err(IdError::Name(text.to_owned())) }
            }
        }
        impl TryFrom<String> for $type {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl schemars::JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" })
            }
        }
    };
}

name!(
    /// A service, as relay.toml and agent.toml name it.
    ServiceName
);
name!(
    /// An agent; several processes may bear it, told apart by their [`InstanceId`].
    AgentName
);
name!(
    /// One installation of an agent: made at `join`, kept beside its key.
    InstanceId
);
name!(
    /// A relay, as its certificate and the agents' logs call it.
    RelayName
);
name!(
    /// The short name of an issuer in the configuration; not the `iss` of its tokens.
    IssuerName
);

impl InstanceId {
    /// A fresh id: 26 characters, time-ordered.
    pub fn random() -> Self {
        Self(Ulid::new().to_string().to_ascii_lowercase().into())
    }
}

macro_rules! ulid_id {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $type(Ulid);

        impl $type {
            /// A fresh id: 48 bits of time in milliseconds, 80 random bits.
            pub fn random() -> Self {
                Self(Ulid::new())
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Ulid::from_string(&text).map(Self).map_err(serde::de::Error::custom)
            }
        }
    };
}

ulid_id!(
    /// Follows one request through caller, relay, agent and upstream (`X-Request-Id`): 26 characters.
    RequestId
);
ulid_id!(
    /// Names one decision of policy in refusals and audit: 26 characters.
    DecisionId
);

/// The SPIFFE trust domain of one Postern installation, such as `example.com`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let good = (1..=255).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b));
        if good { Ok(Self(text.into())) } else { Err(IdError::TrustDomain(text.to_owned())) }
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a certificate speaks for: `spiffe://<domain>/agent/<name>/<instance>` or `spiffe://<domain>/relay/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SpiffeId {
    Agent { domain: TrustDomain, name: AgentName, instance: InstanceId },
    Relay { domain: TrustDomain, name: RelayName },
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { domain, name, instance } => write!(f, "spiffe://{domain}/agent/{name}/{instance}"),
            Self::Relay { domain, name } => write!(f, "spiffe://{domain}/relay/{name}"),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let refuse = || IdError::Spiffe(text.to_owned());
        let mut parts = text.strip_prefix("spiffe://").ok_or_else(refuse)?.split('/');
        let domain = parts.next().ok_or_else(refuse)?.parse().map_err(|_| refuse())?;
        let id = match (parts.next(), parts.next(), parts.next()) {
            (Some("agent"), Some(name), Some(instance)) => Self::Agent {
                domain,
                name: name.parse().map_err(|_| refuse())?,
                instance: instance.parse().map_err(|_| refuse())?,
            },
            (Some("relay"), Some(name), None) => {
                Self::Relay { domain, name: name.parse().map_err(|_| refuse())? }
            }
            _ => return Err(refuse()),
        };
        if parts.next().is_some() { Err(refuse()) } else { Ok(id) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "billing", "dc-1", "0", &"a".repeat(63)] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a b", "é", &"a".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spiffe_ids_read_back_as_written() {
        for text in ["spiffe://example.com/agent/dc1/01jc8", "spiffe://example.com/relay/main"] {
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
        for bad in [
            "spiffe://example.com/agent/dc1",
            "spiffe://example.com/agent/dc1/x/y",
            "spiffe://example.com/relay/main/x",
            "spiffe:///relay/main",
            "https://example.com/relay/main",
            "spiffe://example.com/user/main",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}
