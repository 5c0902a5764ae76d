//! An agent, or one instance of it, as operators name them: `NAME` or `NAME/INSTANCE`. Takes and gives that text; refuses any other.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use postern_base::id::{AgentName, InstanceId};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Whom an order is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Who {
    pub name: AgentName,
    /// `None` is all instances of the name.
    pub instance: Option<InstanceId>,
}

/// A text that names no agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no agent: write NAME or NAME/INSTANCE, as `postern-relay agent ls` shows them; a name has a to z, 0 to 9 and -"
)]
pub struct WhoError(String);

impl Who {
    pub fn instance(name: &AgentName, instance: &InstanceId) -> Self {
        Self { name: name.clone(), instance: Some(instance.clone()) }
    }

    pub fn covers(&self, name: &AgentName, instance: &InstanceId) -> bool {
        self.name == *name && self.instance.as_ref().is_none_or(|only| only == instance)
    }
}

impl From<AgentName> for Who {
    fn from(name: AgentName) -> Self {
        Self { name, instance: None }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)?;
        self.instance.iter().try_for_each(|instance| write!(f, "/{instance}"))
    }
}

impl FromStr for Who {
    type Err = WhoError;

    fn from_str(text: &str) -> Result<Self, WhoError> {
        let refuse = || WhoError(text.to_owned());
        let (name, instance) = text.split_once('/').map_or((text, None), |(name, of)| (name, Some(of)));
        Ok(Self {
            name: name.parse().map_err(|_| refuse())?,
            instance: instance.map(str::parse).transpose().map_err(|_| refuse())?,
        })
    }
}

impl JsonSchema for Who {
    fn schema_name() -> Cow<'static, str> {
        "Who".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "NAME or NAME/INSTANCE" })
    }
}

impl TryFrom<String> for Who {
    type Error = WhoError;

    fn try_from(text: String) -> Result<Self, WhoError> {
        text.parse()
    }
}

impl From<Who> for String {
    fn from(who: Who) -> Self {
        who.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_or_one_of_its_instances() {
        let (all, one): (Who, Who) = ("dc1".parse().unwrap(), "dc1/a1".parse().unwrap());
        assert_eq!((all.to_string().as_str(), one.to_string().as_str()), ("dc1", "dc1/a1"));
        let (dc1, a1) = (&"dc1".parse().unwrap(), &"a1".parse().unwrap());
        assert!(all.covers(dc1, a1) && one.covers(dc1, a1));
        assert!(!one.covers(dc1, &"a2".parse().unwrap()) && !all.covers(&"dc2".parse().unwrap(), a1));
        for bad in ["", "/", "dc1/", "/a1", "dc1/a1/", "DC1", "dc1 "] {
            assert!(bad.parse::<Who>().is_err(), "{bad:?}");
        }
        assert_eq!(serde_json::to_string(&one).unwrap(), "\"dc1/a1\"");
    }
}
