//! Takes a refusal as the relay writes it (RFC 9457); gives what a person is told: what happened, the closest rule, what to do.

use http::HeaderMap;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use postern_base::console::wait;
use postern_base::id::ServiceName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};
use crate::output::text::Afar;

/// A refusal's document. Only Postern's own are read: an upstream's say nothing about policy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    kind: String,
    pub(crate) status: u16,
    pub(crate) title: Afar,
    #[serde(default)]
    pub(crate) detail: Option<Afar>,
    #[serde(default)]
    pub(crate) request_id: Option<Afar>,
    #[serde(default)]
    pub(crate) decision_id: Option<Afar>,
    #[serde(default)]
    pub(crate) closest: Option<Closest>,
    #[serde(skip)]
    step_up: Option<StepUp>,
    /// In seconds.
    #[serde(skip)]
    retry_after: Option<u64>,
}

/// What kind of login a challenge asks for (RFC 9470, 3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct StepUp {
    acr: Option<Afar>,
    /// In seconds.
    max_age: Option<u64>,
}

/// The rule that came closest to allowing a call, and what the caller lacks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Closest {
    pub(crate) rule: Afar,
    #[serde(default)]
    pub(crate) missing: Vec<Afar>,
}

/// The media type of RFC 9457.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
/// Problem documents are a few hundred bytes; more is not one of ours.
pub(crate) const PROBLEM_BYTES: usize = 64 * 1024;
/// The type of every problem that a Postern program made.
const OURS: &str = "urn:postern:";
/// The error code of a step-up challenge.
pub(crate) const STEP_UP: &str = "insufficient_user_authentication";
/// The forward's own word for a relay that cannot be reached.
pub(crate) const RELAY_UNREACHABLE: &str = "urn:postern:client:relay-unreachable";

/// Whether an answer's head announces a problem document.
pub(crate) fn is_problem(headers: &HeaderMap) -> bool {
    let essence = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).and_then(|v| v.split(';').next());
    essence.is_some_and(|e| e.trim().eq_ignore_ascii_case(PROBLEM_JSON))
}

impl Problem {
    /// The problem in this body, if Postern made it.
    pub(crate) fn ours(body: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(body).ok().filter(|problem| problem.kind.starts_with(OURS))
    }

    /// With what the answer's head adds to its body: how strong a login it wants, and how long to wait.
    #[must_use]
    pub(crate) fn challenged(mut self, headers: &HeaderMap) -> Self {
        let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        self.step_up = challenges.filter(|text| text.contains(STEP_UP)).map(StepUp::new).next();
        let wait = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        self.retry_after = wait.and_then(|seconds| seconds.parse().ok());
        self
    }

    /// A missing service is called by its name: the relay does not repeat it.
    #[must_use]
    pub(crate) fn about(mut self, service: &ServiceName) -> Self {
        if self.short_kind() == "no-such-service" {
            self.detail = Some(service.as_str().into());
        }
        self
    }

    /// Whether a stronger or fresher login is asked for (RFC 9470).
    pub(crate) fn is_step_up(&self) -> bool {
        self.short_kind() == "step-up"
    }

    /// Whether an operator's lock refuses the caller, or the way to the service: no login helps.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self.short_kind(), "locked" | "service-locked")
    }

    /// Whom to ask about a lock, which its detail names.
    fn lock_fix(&self) -> String {
        let detail = self.detail.as_ref().map_or("", Afar::raw);
        let id = detail.split_once("about lock ").map(|(_, rest)| rest.trim_end());
        lock_fix(id.unwrap_or_default())
    }

    /// Whether the way to the agent broke meanwhile.
    pub(crate) fn is_tunnel_lost(&self) -> bool {
        self.short_kind() == "tunnel-lost"
    }

    fn short_kind(&self) -> &str {
        self.kind.strip_prefix(OURS).unwrap_or_default()
    }

    /// What happened. Policy's details and this client's say so by themselves; the others say only more than their title.
    fn said(&self) -> String {
        let kind = self.short_kind();
        let whole = matches!(kind, "denied" | "insufficient-scope" | "method-not-allowed" | "step-up")
            || kind.starts_with("client:");
        match &self.detail {
            Some(detail) if whole => detail.to_string(),
            Some(detail) => {
                let (title, detail) = (self.title.to_string(), detail.to_string());
                // Some details begin as their title does.
                let begins = detail.get(..title.len()).is_some_and(|head| head.eq_ignore_ascii_case(&title));
                let rest =
                    if begins { detail[title.len()..].trim_start_matches([':', ' ']) } else { &*detail };
                format!("{title}: {rest}")
            }
            None => self.title.to_string(),
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        match self.short_kind() {
            _ if self.kind == RELAY_UNREACHABLE => Exit::RelayUnreachable,
            // A new login would be refused as well.
            "locked" => Exit::Denied,
            _ => Exit::of_status(self.status),
        }
    }

    /// What a person is told. `call` is the call as it would be typed (`DELETE billing/v1/invoices/7`), where there was one.
    pub(crate) fn explain(&self, call: Option<&str>, relay: &str) -> Failure {
        let exit = self.exit();
        let said = self.said();
        // Of the relay's own addresses this program writes the calls.
        let said = said.split_once("; ask ?method=").map_or(&*said, |(said, _)| said);
        // The relay's detail stands by itself and so repeats the closest rule, which has a line of its own here.
        let said =
            said.split_once("; closest: ").filter(|_| self.closest.is_some()).map_or(said, |(said, _)| said);
        let head = if exit == Exit::Denied { "Denied" } else { "Refused" };
        let id = match (&self.decision_id, &self.request_id) {
            (Some(decision), _) => format!("   [decision {decision}]"),
            (None, Some(request)) => format!("   [request {request}]"),
            (None, None) => String::new(),
        };
        let mut failure = Failure::new(exit, format!("{head} ({}): {said}{id}", self.status));
        if let Some(closest) = &self.closest {
            failure = failure.detail(closest.line());
        }
        match exit {
            Exit::Denied | Exit::UpstreamDown if self.is_locked() => failure.fix(self.lock_fix()),
            Exit::Denied if self.short_kind() == "agent-denied" => {
                failure.fix("ask whoever runs the agent: its own file does not allow this")
            }
            Exit::Denied => failure.fix(deny_fix(self.closest.as_ref(), call)),
            Exit::LoginNeeded if self.is_step_up() => {
                let asked = self.step_up.clone().unwrap_or_default();
                failure.fix(format!("log in anew{}: postern login {relay} --force", asked.words()))
            }
            // Proofs say when they were made.
            Exit::LoginNeeded if self.short_kind() == "invalid-dpop-proof" => {
                failure.fix(format!("set this machine's clock; if it is right: postern login {relay} --force"))
            }
            Exit::LoginNeeded => failure.fix(format!("run: postern login {relay}")).login_helps(),
            Exit::NoSuchService => failure.fix("see what there is: postern ls"),
            Exit::UpstreamDown => match self.short_kind() {
                kind if kind.starts_with("upstream-") || kind.starts_with("agent-") => failure.fix(
                    "the service behind the agent is at fault: tell whoever runs it (the agent's log says more)",
                ),
                // Its detail says what to do.
                kind if kind.starts_with("client:") => failure,
                "suspended" => failure.fix("the operator lets it in again with: postern-relay agent resume"),
                "audit-unavailable" | "issuer-unavailable" | "overloaded" | "proofs-full" | "counts-full" => {
                    failure.fix("try again in a moment; if it stays so, tell whoever runs the relay")
                }
                _ => failure.fix("see whether it is up: postern ls; then try again"),
            },
            Exit::RateLimited => {
                failure.fix(format!("wait {}, then try again", self.retry_after.map_or("a moment".into(), wait)))
            }
            Exit::RelayUnreachable => failure.fix("check your network, then try again"),
            Exit::Other | Exit::Usage | Exit::Config | Exit::Interrupted => failure,
        }
    }
}

/// Whom to ask about a lock of this id.
pub(crate) fn lock_fix(id: &str) -> String {
    if id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        format!("ask the relay's operator about lock {id}")
    } else {
        "ask the relay's operator about that lock".to_owned()
    }
}

impl StepUp {
    fn new(challenge: &str) -> Self {
        let value = |name: &str| {
            let rest = challenge.split_once(&format!("{name}="))?.1;
            let quoted = rest.strip_prefix('"').and_then(|rest| rest.split_once('"'));
            Some(quoted.map_or_else(|| rest.split([',', ' ']).next().unwrap_or_default(), |(value, _)| value))
        };
        let acr = value("acr_values").filter(|acr| !acr.is_empty()).map(Afar::from);
        Self { acr, max_age: value("max_age").and_then(|age| age.parse().ok()) }
    }

    fn words(&self) -> String {
        let acr = self.acr.as_ref().map(|acr| format!(", by {acr}"));
        let age = self.max_age.map(|age| format!(", not longer ago than {age} s"));
        if acr.is_none() && age.is_none() {
            return ", and more strongly if asked".to_owned();
        }
        acr.into_iter().chain(age).collect()
    }
}

impl Closest {
    pub(crate) fn line(&self) -> String {
        let missing = if self.missing.is_empty() {
            "something else".to_owned()
        } else {
            self.missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
        };
        format!("Closest: \"{}\" needs {missing}", self.rule)
    }
}

/// What to do about a denial: a missing scope can be asked for at login, a role or a group only of people.
pub(crate) fn deny_fix(closest: Option<&Closest>, call: Option<&str>) -> String {
    let Some(Closest { missing, .. }) = closest else { return "see what you may do: postern ls".to_owned() };
    if let [only] = &missing[..]
        && let Some(methods) = only.to_string().strip_prefix("method ")
    {
        return format!("you may: {methods} (see: postern ls)");
    }
    let group = missing.iter().find(|m| m.raw().starts_with("group "));
    let scopes: Option<Vec<_>> = missing.iter().map(|m| scopes_of(m.raw())).collect();
    let ask = match scopes {
        Some(scopes) if !scopes.is_empty() => format!("log in with it: postern login{}", scopes.concat()),
        _ if missing.iter().any(|m| m.raw().starts_with("role ")) => "ask for that role".to_owned(),
        _ => group.map_or_else(
            || "ask whoever runs the relay for access".to_owned(),
            |group| format!("ask to be put in {group}"),
        ),
    };
    call.map_or_else(|| ask.clone(), |call| format!("{ask}; try it with: postern can {call}"))
}

/// The options that ask for what `scope a b or scope c` names first; none where it is no scope, or not fit for a command line.
fn scopes_of(missing: &str) -> Option<String> {
    let first = missing.strip_prefix("scope ")?.split(" or scope ").next()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ":._/- ".contains(c);
    let options = first.split_whitespace().map(|scope| format!(" --scope {scope}"));
    first.chars().all(plain).then(|| options.collect())
}

#[cfg(test)]
mod tests;
