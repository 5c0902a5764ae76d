//! Finds in an audit log: takes what is asked and every line; gives the lines of those requests of which all that is asked is true, though
//! one line may say who and another how it ended; and single lines of events likewise.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;

use super::Pseudonyms;

/// What is asked; all of it must be true.
#[derive(Debug, Default)]
pub struct Asked {
    pub request: Option<String>,
    pub token: Option<String>,
    /// User or subject.
    pub user: Option<String>,
    pub service: Option<String>,
    pub agent: Option<String>,
    pub status: Option<u16>,
    pub since: Option<Timestamp>,
    pub denied: bool,
}

/// What is asked, in order: a bit each.
const ALL: usize = 7;

/// Two looks at every line: the first one notes what is true of which request, the second one chooses.
#[derive(Debug)]
pub struct Finder {
    asked: Asked,
    /// The names that the user may have in the log.
    names: Vec<String>,
    /// The bits that have to be set.
    wanted: u8,
    requests: HashMap<String, u8>,
}

impl Finder {
    pub fn new(asked: Asked, pseudonyms: Option<&Pseudonyms>) -> Self {
        let user = asked.user.clone();
        let veiled = user.as_deref().zip(pseudonyms).map(|(user, names)| names.person(user).into_owned());
        let names = user.into_iter().chain(veiled).collect();
        let is_asked: [bool; ALL] = [
            asked.request.is_some(),
            asked.token.is_some(),
            asked.user.is_some(),
            asked.service.is_some(),
            asked.agent.is_some(),
            asked.status.is_some(),
            asked.denied,
        ];
        let wanted = bits(is_asked);
        Self { asked, names, wanted, requests: HashMap::new() }
    }

    /// What a line alone makes true.
    fn truths(&self, line: &Value) -> u8 {
        let is = |name: &str, wanted: Option<&str>| wanted.is_some() && line[name].as_str() == wanted;
        let named = |name: &str| line[name].as_str().is_some_and(|text| self.names.iter().any(|n| n == text));
        let asked = &self.asked;
        bits([
            is("request_id", asked.request.as_deref()) || is("decision_id", asked.request.as_deref()),
            is("token", asked.token.as_deref()),
            named("user") || named("subject"),
            is("service", asked.service.as_deref()),
            is("agent", asked.agent.as_deref()),
            asked.status.is_some() && line["status"].as_u64() == asked.status.map(u64::from),
            asked.denied && is_refused(line),
        ])
    }

    fn is_late_enough(&self, line: &Value) -> bool {
        let time = || line["time"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
        self.asked.since.is_none_or(|since| time().is_some_and(|time| time >= since))
    }

    /// The first look.
    pub fn note(&mut self, line: &Value) {
        let truths = self.truths(line);
        if truths != 0
            && self.is_late_enough(line)
            && let Some(id) = line["request_id"].as_str()
        {
            *self.requests.entry(id.to_owned()).or_default() |= truths;
        }
    }

    /// The second look.
    pub fn chooses(&self, line: &Value) -> bool {
        let of_request = line["request_id"].as_str().and_then(|id| self.requests.get(id).copied());
        let truths = of_request.unwrap_or_else(|| self.truths(line));
        truths & self.wanted == self.wanted && self.is_late_enough(line)
    }
}

/// A decision that said no, or how many got one that have no line; or the end of a request that got no for an answer from the relay (not from the upstream) or from the agent.
fn is_refused(line: &Value) -> bool {
    let status = matches!(line["status"].as_u64(), Some(401 | 403 | 429)) && line["reason"].is_string();
    let by_agent = matches!(line["reason"].as_str(), Some("agent-refused" | "agent-denied"));
    line["outcome"] == "deny"
        || line["event"] == "refused-many"
        || (line["event"] == "end" && (status || by_agent))
}

fn bits(truths: [bool; ALL]) -> u8 {
    truths.into_iter().enumerate().fold(0, |bits, (at, is)| bits | (u8::from(is) << at))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_asked_may_be_in_two_lines_of_a_request() {
        let lines = [
            json!({ "time": "2026-01-01T00:00:00Z", "event": "decision", "request_id": "1", "user": "ada", "outcome": "allow" }),
            json!({ "time": "2026-01-01T00:00:01Z", "event": "end", "request_id": "1", "status": 200, "agent": "dc1" }),
            json!({ "time": "2026-01-01T00:00:02Z", "event": "decision", "request_id": "2", "user": "ada", "outcome": "deny" }),
            json!({ "time": "2026-01-01T00:00:03Z", "event": "end", "request_id": "2", "status": 403 }),
            json!({ "time": "2026-01-01T00:00:04Z", "event": "tunnel-open", "agent": "dc1" }),
        ];
        let found = |asked: Asked| {
            let mut finder = Finder::new(asked, None);
            for line in &lines {
                finder.note(line);
            }
            lines
                .iter()
                .enumerate()
                .filter(|(_, line)| finder.chooses(line))
                .map(|(at, _)| at)
                .collect::<Vec<_>>()
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(found(Asked { user: text("ada"), status: Some(403), ..Asked::default() }), [2, 3]);
        assert_eq!(found(Asked { user: text("ada"), ..Asked::default() }), [0, 1, 2, 3]);
        assert_eq!(found(Asked { agent: text("dc1"), ..Asked::default() }), [0, 1, 4]);
        assert_eq!(found(Asked { denied: true, ..Asked::default() }), [2, 3]);
        assert_eq!(found(Asked { request: text("1"), status: Some(403), ..Asked::default() }), [0; 0]);
        assert_eq!(
            found(Asked { since: Some("2026-01-01T00:00:03Z".parse().unwrap()), ..Asked::default() }),
            [3, 4]
        );
        assert_eq!(found(Asked { user: text("bob"), ..Asked::default() }), [0; 0]);
    }

    #[test]
    fn denied_is_whatever_we_refused_line_by_line() {
        let finder = Finder::new(Asked { denied: true, ..Asked::default() }, None);
        let end = |status: u16, reason: Option<&str>| {
            finder.chooses(&json!({ "event": "end", "request_id": "1", "status": status, "reason": reason }))
        };
        for (status, reason) in [
            (401, "invalid-token"),
            (403, "denied"),
            (429, "rate"),
            (502, "agent-refused"),
            (403, "agent-denied"),
        ] {
            assert!(end(status, Some(reason)), "{status} {reason}");
        }
        assert!(!end(403, None), "the upstream's own no");
        assert!(!end(502, Some("connection-refused")));
        assert!(!end(200, None));
        assert!(finder.chooses(&json!({ "event": "decision", "outcome": "deny" })));
        assert!(!finder.chooses(&json!({ "event": "decision", "outcome": "allow" })));
        assert!(finder.chooses(&json!({ "event": "refused-many", "address": "192.0.2.1", "count": 7 })));
    }
}
