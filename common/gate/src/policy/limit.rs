//! How often a rule may be used: takes `20/s per user` and `10000/day per client` as rules write them; gives what has to be counted, and
//! for whom. Nothing is counted here: policy stays pure, and whoever forwards a request takes what its permit says.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use postern_base::id::IssuerName;
use postern_base::network::network;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error};

use crate::principal::Principal;

const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 60 * 60), ("day", 24 * 60 * 60)];

/// For each of what a limit counts. Whatever it is, the callers of another issuer are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Per {
    /// Each subject.
    User,
    /// Each client; tokens that name none are counted together.
    Client,
    /// Each address (IPv6: each /64).
    Ip,
    /// The service as a whole.
    Service,
}

impl Per {
    const ALL: [(&'static str, Self); 4] =
        [("user", Self::User), ("client", Self::Client), ("ip", Self::Ip), ("service", Self::Service)];
}

/// So many requests in a time, for each of something: `20/s per user`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub count: NonZeroU32,
    unit: (&'static str, u64),
    pub per: Per,
}

impl Rate {
    pub fn window(&self) -> Duration {
        Duration::from_secs(self.unit.1)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{text:?} is no limit: write \"20/s per user\" or the like; times are s, m, h, day; per user, client, ip or service"
            )
        };
        let (rate, per) = text.split_once(" per ").ok_or_else(refuse)?;
        let (count, unit) = rate.split_once('/').ok_or_else(refuse)?;
        if !count.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refuse());
        }
        if !count.is_empty() && count.bytes().all(|b| b == b'0') {
            return Err(format!(
                "{text:?} refuses everybody: write 1 or more; to let nobody in, take the rule away or write one that denies"
            ));
        }
        let count = count.parse().map_err(|_| refuse())?;
        let unit = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
        let (_, per) = Per::ALL.into_iter().find(|(name, _)| *name == per).ok_or_else(refuse)?;
        Ok(Self { count, unit, per })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = Per::ALL.iter().find(|(_, per)| *per == self.per).map_or("", |(name, _)| name);
        write!(f, "{}/{} per {per}", self.count, self.unit.0)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[1-9][0-9]*/(s|m|h|day) per (user|client|ip|service)$" })
    }
}

/// What becomes of what was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// It comes back little by little; all of it may be used at once.
    Rate,
    /// It comes back whole, a window after its first use.
    Quota,
}

impl LimitKind {
    /// As relay.toml and the fields of an answer call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Quota => "quota",
        }
    }
}

/// One limit of one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Tells the rule from others by all that it says, so that counts outlive a reload which leaves the rule as it was.
    rule: u64,
    pub kind: LimitKind,
    pub rate: Rate,
}

/// Whose count it is; equal for the same caller at the same limit, whatever was reloaded meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Whose<'a> {
    rule: u64,
    kind: LimitKind,
    issuer: &'a IssuerName,
    who: Who<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who<'a> {
    User(&'a str),
    Client(Option<&'a str>),
    Ip(IpAddr),
    All,
}

impl Limit {
    pub(super) fn of_rule(rule: u64, rate: Option<Rate>, quota: Option<Rate>) -> Box<[Self]> {
        let limits = [(LimitKind::Rate, rate), (LimitKind::Quota, quota)];
        limits.into_iter().filter_map(|(kind, rate)| Some(Self { rule, kind, rate: rate? })).collect()
    }

    pub fn whose<'a>(&self, principal: &'a Principal, address: IpAddr) -> Whose<'a> {
        let who = match self.rate.per {
            Per::User => Who::User(principal.subject()),
            Per::Client => Who::Client(principal.client()),
            Per::Ip => Who::Ip(network(address)),
            Per::Service => Who::All,
        };
        Whose { rule: self.rule, kind: self.kind, issuer: principal.issuer(), who }
    }
}

/// `20/s per user`
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rate.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_written() {
        for text in ["20/s per user", "1/m per client", "7/h per ip", "10000/day per service"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        assert_eq!("2/m per ip".parse::<Rate>().unwrap().window(), Duration::from_mins(1));
        for bad in [
            "",
            "20/s",
            "20 per user",
            "0/s per user",
            "-1/s per user",
            "+1/s per user",
            "1.5/s per user",
            "20/d per user",
            "20/s per address",
            "20/s per user ",
            "5000000000/s per user",
        ] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }
}
