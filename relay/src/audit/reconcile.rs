//! Holds the relay's audit log against an agent's: takes the lines of both; gives the requests that only one of them has. What lies at the
//! ends of either file is left alone, by as much as the two clocks and ends of requests were seen to differ.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use postern_base::audit::chain::Head;
use serde::Deserialize;

use super::verify::{Finding, Kind};

/// A request whose end the two logs saw further apart than this says nothing of their clocks.
const APART: i64 = 60 * 60 * 1000;

/// What either log says that matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    time: Option<Timestamp>,
    event: String,
    request_id: Option<String>,
    outcome: String,
    agent: Option<String>,
    relay: Option<String>,
    status: u16,
    reason: Option<String>,
    duration_ms: i64,
    sequence: u64,
    hash: String,
}

fn parse(line: &[u8]) -> Option<(Line, i64)> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let time = line.time?.as_millisecond();
    Some((line, time))
}

/// From the first to the last line, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy)]
struct Window(i64, i64);

impl Window {
    fn widen(window: &mut Option<Self>, time: i64) {
        let Self(first, last) = window.unwrap_or(Self(time, time));
        *window = Some(Self(first.min(time), last.max(time)));
    }

    /// Whether a request lies in it, further from its ends than `slack`.
    fn holds(self, began: i64, ended: i64, slack: i64) -> bool {
        began > self.0 + slack && ended < self.1 - slack
    }
}

/// What the relay says of one request.
#[derive(Debug, Default)]
struct Told {
    is_allowed: bool,
    ended: Option<i64>,
    /// The agent whose answer the caller got.
    answered_by: Option<String>,
}

/// The requests of the relay's log.
#[derive(Debug, Default)]
pub struct RelaySide {
    requests: HashMap<String, Told>,
    window: Option<Window>,
}

impl RelaySide {
    pub fn line(&mut self, line: &[u8]) {
        let Some((line, time)) = parse(line) else { return };
        Window::widen(&mut self.window, time);
        let Some(id) = line.request_id else { return };
        match line.event.as_str() {
            "decision" => self.requests.entry(id).or_default().is_allowed = line.outcome == "allow",
            "end" => {
                let told = self.requests.entry(id).or_default();
                told.ended = Some(time);
                // Whatever the relay answered itself may never have come to the agent.
                told.answered_by = line.agent.filter(|_| line.reason.is_none() && line.status != 0);
            }
            _ => {}
        }
    }
}

/// When a request began and ended, and over which relay it came.
#[derive(Debug)]
struct Seen {
    began: i64,
    ended: i64,
    relay: String,
}

/// An agent's log.
#[derive(Debug, Default)]
pub struct AgentSide {
    requests: HashMap<String, Seen>,
    /// Of each relay: the first that it told for a line.
    heads: BTreeMap<String, BTreeMap<u64, Head>>,
    /// And what it told beside that, by line.
    others: BTreeMap<String, BTreeSet<u64>>,
    /// Heads of lines before those that it had told long before.
    back: BTreeMap<String, BTreeSet<u64>>,
    window: Option<Window>,
}

impl AgentSide {
    pub fn line(&mut self, line: &[u8]) {
        let Some((line, time)) = parse(line) else { return };
        Window::widen(&mut self.window, time);
        let relay = line.relay.unwrap_or_default();
        match (line.event.as_str(), line.request_id) {
            ("request", Some(id)) => {
                let seen = Seen { began: time - line.duration_ms, ended: time, relay };
                self.requests.insert(id, seen);
            }
            ("chain-head" | "chain-warning", _) => {
                let Some(head) = Head::parse(&line.hash) else { return };
                if line.reason.as_deref() == Some("went-back") {
                    self.back.entry(relay.clone()).or_default().insert(line.sequence);
                }
                // What was told first cannot be taken back by what is told later.
                let first =
                    *self.heads.entry(relay.clone()).or_default().entry(line.sequence).or_insert(head);
                if first != head {
                    self.others.entry(relay).or_default().insert(line.sequence);
                }
            }
            _ => {}
        }
    }

    /// Whether there is anything in it.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.heads.is_empty()
    }

    /// Which of the agent's relays this log is of: the one with which it shares the most requests, or the only one there is.
    fn relay_of(&self, relay: &RelaySide) -> Option<String> {
        let mut shared: BTreeMap<&str, usize> = self.heads.keys().map(|name| (name.as_str(), 0)).collect();
        for (id, seen) in &self.requests {
            *shared.entry(&seen.relay).or_default() += usize::from(relay.requests.contains_key(id));
        }
        shared.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name.to_owned())
    }

    /// The heads that it holds of this relay.
    pub fn heads(&self, relay: &RelaySide) -> BTreeMap<u64, Head> {
        self.relay_of(relay).and_then(|name| self.heads.get(&name).cloned()).unwrap_or_default()
    }
}

/// The outcome.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// Requests that both have.
    pub shared: u64,
    pub findings: Vec<Finding>,
    /// What the agent warned of, and its heads alone do not prove.
    pub notes: Vec<String>,
}

/// What the relay told in two ways.
fn told_twice(agent: &AgentSide, relay: &str) -> Reconciled {
    let find = |line: &u64| Finding {
        kind: Kind::TwoHeads,
        file: None,
        line: None,
        seq: Some(*line),
        request_id: None,
        text: format!(
            "the relay told two heads for line {line}: its log was rewritten, or there were two of them"
        ),
    };
    let note = |line: &u64| {
        format!(
            "the agent warned: the relay told the head of line {line} after that of a later line; its log was set back, or a tunnel was slow"
        )
    };
    Reconciled {
        shared: 0,
        findings: agent.others.get(relay).into_iter().flatten().map(find).collect(),
        notes: agent.back.get(relay).into_iter().flatten().map(note).collect(),
    }
}

pub fn reconcile(relay: &RelaySide, agent: &AgentSide) -> Reconciled {
    let over = agent.relay_of(relay).unwrap_or_default();
    let mut reconciled = told_twice(agent, &over);
    let (Some(relay_window), Some(agent_window)) = (relay.window, agent.window) else { return reconciled };
    let mut slack = 0;
    let mut names: BTreeMap<&str, u64> = BTreeMap::new();
    for (id, seen) in &agent.requests {
        let Some(told) = relay.requests.get(id) else { continue };
        reconciled.shared += 1;
        slack = told.ended.map_or(slack, |ended| slack.max((ended - seen.ended).abs().min(APART)));
        if let Some(name) = &told.answered_by {
            *names.entry(name).or_default() += 1;
        }
    }
    let find = |kind, id: &str, text: &str| Finding {
        kind,
        file: None,
        line: None,
        seq: None,
        request_id: Some(id.to_owned()),
        text: format!("request {id}: {text}"),
    };
    for (id, seen) in agent.requests.iter().filter(|(_, seen)| seen.relay == over) {
        match relay.requests.get(id) {
            Some(told) if told.is_allowed => {}
            Some(_) => {
                let text = "the agent served it, and the relay's log does not say that it was allowed";
                reconciled.findings.push(find(Kind::AgentOnly, id, text));
            }
            None if relay_window.holds(seen.began, seen.ended, slack) => {
                reconciled.findings.push(find(Kind::AgentOnly, id, "only the agent's log has it"));
            }
            None => {}
        }
    }
    // The agent is whoever answered what both logs have.
    let name = names.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name);
    for (id, told) in &relay.requests {
        let is_its = told.answered_by.is_some() && told.answered_by.as_deref() == name;
        let is_inside = told.ended.is_some_and(|ended| agent_window.holds(ended, ended, slack));
        if is_its && is_inside && !agent.requests.contains_key(id) {
            reconciled.findings.push(find(Kind::RelayOnly, id, "only the relay's log has it"));
        }
    }
    reconciled.findings.sort_by(|a, b| a.text.cmp(&b.text));
    reconciled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(lines: &[&str]) -> RelaySide {
        let mut side = RelaySide::default();
        for line in lines {
            side.line(line.as_bytes());
        }
        side
    }

    fn agent(lines: &[&str]) -> AgentSide {
        let mut side = AgentSide::default();
        for line in lines {
            side.line(line.as_bytes());
        }
        side
    }

    fn decision(id: &str, second: u32, outcome: &str) -> String {
        format!(
            r#"{{"time":"2026-01-01T00:00:{second:02}.000Z","event":"decision","request_id":"{id}","outcome":"{outcome}"}}"#
        )
    }

    fn end(id: &str, second: u32, agent: &str) -> String {
        format!(
            r#"{{"time":"2026-01-01T00:00:{second:02}.001Z","event":"end","request_id":"{id}","status":200,"agent":"{agent}"}}"#
        )
    }

    fn served(id: &str, second: u32, relay: &str) -> String {
        format!(
            r#"{{"time":"2026-01-01T00:00:{second:02}.000Z","event":"request","request_id":"{id}","relay":"{relay}","duration_ms":1}}"#
        )
    }

    #[test]
    fn requests_of_one_side_alone_are_named_but_for_the_ends() {
        let told: Vec<String> =
            [("edge", 1), ("a", 10), ("b", 20), ("c", 30), ("denied", 31), ("d", 40), ("z", 59)]
                .into_iter()
                .flat_map(|(id, second)| {
                    let outcome = if id == "denied" { "deny" } else { "allow" };
                    let by = if id == "d" { "dc2" } else { "dc1" };
                    [decision(id, second, outcome), end(id, second, by)]
                })
                .collect();
        let told: Vec<&str> = told.iter().map(String::as_str).collect();
        let seen = [
            served("a", 10, "one"),
            served("b", 20, "one"),
            served("denied", 31, "one"),
            served("forged", 35, "one"),
            served("elsewhere", 36, "two"),
            served("z", 59, "one"),
        ];
        let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
        let found = reconcile(&relay(&told), &agent(&seen));
        assert_eq!(found.shared, 4);
        let found: Vec<_> =
            found.findings.iter().map(|f| (f.kind, f.request_id.as_deref().unwrap())).collect();
        assert_eq!(found, [(Kind::RelayOnly, "c"), (Kind::AgentOnly, "denied"), (Kind::AgentOnly, "forged")]);
    }

    #[test]
    fn heads_are_those_of_the_relay_that_the_requests_came_from() {
        let head = Head([1; 32]);
        let told = decision("a", 10, "allow");
        let lines = [
            format!(
                r#"{{"time":"2026-01-01T00:00:00Z","event":"chain-head","relay":"one","sequence":5,"hash":"{head}"}}"#
            ),
            format!(
                r#"{{"time":"2026-01-01T00:00:00Z","event":"chain-head","relay":"two","sequence":9,"hash":"{head}"}}"#
            ),
            served("a", 10, "one"),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(agent(&lines).heads(&relay(&[&told])), BTreeMap::from([(5, head)]));
    }

    #[test]
    fn the_first_head_of_a_line_stands_and_another_is_a_finding() {
        let (first, second) = (Head([1; 32]), Head([2; 32]));
        let told = |event: &str, sequence: u64, head: Head, more: &str| {
            format!(
                r#"{{"time":"2026-01-01T00:00:00Z","event":"{event}","relay":"one","sequence":{sequence},"hash":"{head}"{more}}}"#
            )
        };
        for event in ["chain-head", "chain-warning"] {
            let lines = [
                told("chain-head", 5, first, ""),
                told("chain-head", 9, first, ""),
                told(event, 5, second, ""),
                told(event, 5, first, ""),
                told("chain-warning", 7, first, r#","reason":"went-back""#),
            ];
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let (relay, agent) = (relay(&[]), agent(&lines));
            assert_eq!(agent.heads(&relay), BTreeMap::from([(5, first), (7, first), (9, first)]));
            let found = reconcile(&relay, &agent);
            let kinds: Vec<_> = found.findings.iter().map(|f| (f.kind, f.seq)).collect();
            assert_eq!(kinds, [(Kind::TwoHeads, Some(5))], "{event}");
            assert!(found.findings[0].text.starts_with("the relay told two heads for line 5"));
            assert!(found.notes.len() == 1 && found.notes[0].contains("line 7"), "{:?}", found.notes);
        }
    }
}
