//! Takes one compiled rule and what is asked; gives whether it applies, and if not, exactly what is missing.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;

use super::Target;
use super::limit::Limit;
use super::role::{Atom, Callers, Held, Kind};
use super::target::Pattern;
use crate::principal::Principal;

/// One question to the policy, with what is known about the caller.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) principal: &'a Principal,
    pub(super) held: &'a Held,
    pub(super) target: &'a Target<'a>,
    pub(super) address: IpAddr,
    /// Seconds since the epoch.
    pub(super) now: u64,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: Arc<str>,
    /// Any of these.
    pub(super) who: Vec<Atom>,
    /// Any of these.
    pub(super) to: Vec<Pattern>,
    pub(super) with: With,
    /// Any of these; none = from everywhere.
    pub(super) from: Vec<IpNet>,
    /// How often, all of them; none = as often as one likes.
    pub(super) limits: Arc<[Limit]>,
}

impl Rule {
    pub(super) fn allows(&self, ask: &Ask<'_>) -> bool {
        self.speaks_for(ask) && self.admits(ask)
    }

    /// It allows this target, to whomever.
    pub(super) fn speaks_for(&self, ask: &Ask<'_>) -> bool {
        self.to.iter().any(|pattern| pattern.allows(ask.target.method, ask.target.path))
    }

    /// `readings` are those of the target's path.
    pub(super) fn denies(&self, ask: &Ask<'_>, readings: &[Vec<String>]) -> bool {
        self.speaks_against(ask, readings) && self.admits(ask)
    }

    /// It denies this target, to whomever.
    pub(super) fn speaks_against(&self, ask: &Ask<'_>, readings: &[Vec<String>]) -> bool {
        let Target { method, path, .. } = ask.target;
        self.to.iter().any(|pattern| pattern.denies(method, path, readings))
    }

    fn admits(&self, ask: &Ask<'_>) -> bool {
        ask.held.any(&self.who) && self.with.holds(ask.principal, ask.now) && self.is_from(ask.address)
    }

    fn is_from(&self, address: IpAddr) -> bool {
        self.from.is_empty() || self.from.iter().any(|network| network.contains(&address))
    }

    /// Which methods the patterns that cover the target's path take; `None` when none covers it.
    pub(super) fn methods_here(&self, target: &Target<'_>) -> Option<Vec<&str>> {
        let mut covering = self.to.iter().filter(|pattern| pattern.covers(target.path)).peekable();
        covering.peek()?;
        Some(covering.flat_map(Pattern::methods).map(|method| &**method).collect())
    }

    /// Everything but the target that keeps this rule from applying.
    pub(super) fn missing(&self, ask: &Ask<'_>, callers: &Callers) -> Vec<Missing> {
        let mut missing = if ask.held.any(&self.who) { Vec::new() } else { self.missing_who(ask, callers) };
        missing.extend(self.with.missing(ask.principal, ask.now));
        if !self.is_from(ask.address) {
            missing.push(self.address_missing());
        }
        missing
    }

    /// What `with` and `from` ask for beyond what the principal has; the address is not known here.
    pub(super) fn still_asks(&self, principal: &Principal, now: u64) -> Vec<String> {
        let address = (!self.from.is_empty()).then(|| self.address_missing());
        self.with.missing(principal, now).into_iter().chain(address).map(|m| m.to_string()).collect()
    }

    fn address_missing(&self) -> Missing {
        Missing::Address(listed(self.from.iter().map(IpNet::to_string), "or"))
    }

    fn missing_who(&self, ask: &Ask<'_>, callers: &Callers) -> Vec<Missing> {
        // A caller whom a role lists, and who only lacks what its `with` asks for, is told that.
        let listed_in =
            self.who.iter().filter_map(|atom| callers.role(*atom)).filter(|role| ask.held.any(&role.any));
        if let Some(near) =
            listed_in.map(|role| role.with.missing(ask.principal, ask.now)).min_by_key(Vec::len)
        {
            return near;
        }
        if let [atom] = self.who[..]
            && let Some(selector) = callers.selector(atom)
            && selector.kind == Kind::Scope
            && selector.issuer == *ask.principal.issuer()
        {
            return vec![Missing::Scope {
                all: format!("scope {}", selector.value),
                least: selector.value.clone(),
            }];
        }
        let mut texts: Vec<String> =
            self.who.iter().map(|atom| callers.describe(*atom, ask.principal)).collect();
        texts.dedup();
        vec![Missing::Caller(listed(texts, "or"))]
    }
}

/// What a token must carry: all of it.
#[derive(Debug, Default)]
pub(super) struct With {
    /// Any of these, each a list of scopes that must all be there; none = no matter.
    pub(super) scope: Vec<Vec<String>>,
    /// Any of these; none = no matter.
    pub(super) acr: Vec<String>,
    pub(super) max_age: Option<Duration>,
    pub(super) claims: Vec<ClaimTest>,
    /// Bound to a key (RFC 9449, RFC 8705); whoever made the principal saw the proof.
    pub(super) bound: bool,
}

#[derive(Debug)]
pub(super) struct ClaimTest {
    /// As the file has it, without `claims.`.
    pub(super) name: String,
    pub(super) path: Vec<String>,
    pub(super) values: Vec<Value>,
}

impl With {
    pub(super) fn holds(&self, principal: &Principal, now: u64) -> bool {
        self.scope_holds(principal)
            && self.acr_holds(principal)
            && self.max_age_holds(principal, now)
            && self.claims.iter().all(|test| test.holds(principal))
            && self.bound_holds(principal)
    }

    fn bound_holds(&self, principal: &Principal) -> bool {
        !self.bound || principal.binding().is_some()
    }

    fn scope_holds(&self, principal: &Principal) -> bool {
        self.scope.is_empty()
            || self.scope.iter().any(|all| all.iter().all(|scope| principal.scopes().contains(scope)))
    }

    fn acr_holds(&self, principal: &Principal) -> bool {
        self.acr.is_empty() || principal.acr().is_some_and(|acr| self.acr.iter().any(|known| known == acr))
    }

    /// Fails when the token does not say when the person logged in.
    fn max_age_holds(&self, principal: &Principal, now: u64) -> bool {
        self.max_age.is_none_or(|age| {
            principal.auth_time().is_some_and(|login| now <= login.saturating_add(age.as_secs()))
        })
    }

    pub(super) fn missing(&self, principal: &Principal, now: u64) -> Vec<Missing> {
        let mut missing = Vec::new();
        if !self.scope_holds(principal) {
            let lacking =
                |all: &Vec<String>| all.iter().filter(|s| !principal.scopes().contains(s)).cloned().collect();
            let alternatives: Vec<Vec<String>> = self.scope.iter().map(lacking).collect();
            let least = alternatives.iter().min_by_key(|list| list.len()).map(|list| list.join(" "));
            let all = listed(alternatives.iter().map(|list| format!("scope {}", list.join(" "))), "or");
            missing.push(Missing::Scope { all, least: least.unwrap_or_default() });
        }
        if !self.acr_holds(principal) {
            missing.push(Missing::Acr(self.acr.clone()));
        }
        if let Some(age) = self.max_age.filter(|_| !self.max_age_holds(principal, now)) {
            missing.push(Missing::Login(age));
        }
        missing.extend(self.claims.iter().filter(|test| !test.holds(principal)).map(ClaimTest::missing));
        if !self.bound_holds(principal) {
            missing.push(Missing::Bound);
        }
        missing
    }

    /// Whether it asks for anything.
    pub(super) fn asks(&self) -> bool {
        !self.scope.is_empty()
            || !self.acr.is_empty()
            || self.max_age.is_some()
            || !self.claims.is_empty()
            || self.bound
    }

    pub(super) fn scopes(&self) -> impl Iterator<Item = String> {
        self.scope.iter().flatten().cloned()
    }
}

impl ClaimTest {
    fn holds(&self, principal: &Principal) -> bool {
        let mut path = self.path.iter();
        let first = path.next().and_then(|name| principal.claims().get(name));
        match path.fold(first, |value, name| value?.as_object()?.get(name)) {
            Some(Value::Array(list)) => list.iter().any(|entry| self.values.contains(entry)),
            Some(value) => self.values.contains(value),
            None => false,
        }
    }

    fn missing(&self) -> Missing {
        let value = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Missing::Claim(format!("claims.{} = {}", self.name, listed(self.values.iter().map(value), "or")))
    }
}

/// One condition that is not met. Display fits behind "needs".
#[derive(Debug)]
pub(super) enum Missing {
    Caller(String),
    Method(String),
    /// All that would do, for people; and the least of them, for the challenge.
    Scope {
        all: String,
        least: String,
    },
    Acr(Vec<String>),
    Login(Duration),
    Claim(String),
    Bound,
    Address(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caller(text) | Self::Scope { all: text, .. } | Self::Claim(text) => f.write_str(text),
            Self::Method(methods) => write!(f, "method {methods}"),
            Self::Acr(values) => write!(f, "a login with acr {}", listed(values, "or")),
            Self::Login(age) => write!(f, "a login within the last {}", span(*age)),
            Self::Bound => f.write_str("a token bound to a key (DPoP or mutual TLS)"),
            Self::Address(networks) => write!(f, "an address in {networks}"),
        }
    }
}

/// The way people write it in the file: `1h` rather than `3600s`.
fn span(age: Duration) -> String {
    let seconds = age.as_secs();
    match [(86_400, "d"), (3_600, "h"), (60, "m")]
        .iter()
        .find(|(size, _)| seconds >= *size && seconds.is_multiple_of(*size))
    {
        Some((size, unit)) => format!("{}{unit}", seconds / size),
        None => format!("{seconds}s"),
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn listed(items: impl IntoIterator<Item = impl AsRef<str>>, conjunction: &str) -> String {
    let items: Vec<_> = items.into_iter().collect();
    let mut text = String::new();
    for (index, item) in items.iter().enumerate() {
        let lead = match items.len() - index {
            _ if index == 0 => [""; 3],
            1 => [" ", conjunction, " "],
            _ => [", ", "", ""],
        };
        text.extend(lead);
        text.push_str(item.as_ref());
    }
    text
}

/// IPv4 inside IPv6 (`::ffff:10.0.0.0/104`) is compared as IPv4, as addresses are.
pub(super) fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    v4.and_then(|(address, bits)| Ipv4Net::new(address, bits).ok()).map_or(network, IpNet::V4)
}
