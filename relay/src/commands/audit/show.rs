//! An audit line for people: one line of text, with what is looked for first in front. Nothing in it can move a terminal's cursor.

use std::fmt::Write;

use postern_base::console;
use serde::Deserialize;
use serde_json::Value;

use crate::session::LockOn;

/// What is said in its own place, or says nothing to people.
const PLACED: [&str; 5] = ["seq", "mac", "after", "time", "event"];

pub(super) fn line(line: &Value) -> String {
    let text = |name: &str| line[name].as_str().unwrap_or_default();
    let mut shown = text("time").replacen('T', " ", 1);
    match text("event") {
        "decision" => decision(line, &mut shown),
        "end" => end(line, &mut shown),
        event => {
            let _ = write!(shown, "  {event}");
            for (name, value) in line.as_object().into_iter().flatten() {
                if !PLACED.contains(&name.as_str()) && !value.is_null() {
                    let _ = write!(shown, "  {name} {}", field(name, value));
                }
            }
        }
    }
    shown.chars().flat_map(escaped).collect()
}

fn decision(line: &Value, shown: &mut String) {
    let text = |name: &str| line[name].as_str().unwrap_or_default();
    // Writing to a String does not fail.
    // A TCP service has no path: what was asked for is the relay's own address of it.
    let path = if text("method") == "CONNECT" { "" } else { text("path") };
    let _ = write!(shown, "  {:5}  {} {}{path}", text("outcome"), text("method"), text("service"));
    match line["user"].as_str() {
        Some(user) => drop(write!(shown, "  {user} ({})", text("issuer"))),
        None => shown.push_str("  nobody known"),
    }
    if let Some(rule) = line["rule"].as_str() {
        let _ = write!(shown, "  rule {rule:?}");
    }
    for (label, name) in [("needs", "missing"), ("", "reason")] {
        if !line[name].is_null() {
            let _ =
                write!(shown, "  {label}{}{}", if label.is_empty() { "" } else { " " }, plain(&line[name]));
        }
    }
    let _ = write!(shown, "  from {}  {}", text("address"), text("request_id"));
}

fn end(line: &Value, shown: &mut String) {
    let text = |name: &str| line[name].as_str().unwrap_or_default();
    let number = |name: &str| line[name].as_u64().unwrap_or(0);
    let service = line["service"].as_str().unwrap_or("-");
    let _ = write!(shown, "  {:5}  {} {service} {}", "end", number("status"), text("ended"));
    if let Some(reason) = line["reason"].as_str() {
        let _ = write!(shown, " ({reason})");
    }
    let (taken, given) = (number("bytes_in"), number("bytes_out"));
    let _ = write!(shown, "  {} ms  {taken} B in  {given} B out", number("duration_ms"));
    if let Some(agent) = line["agent"].as_str() {
        let _ = write!(shown, "  agent {agent}");
    }
    let _ = write!(shown, "  from {}  {}", text("address"), text("request_id"));
}

/// What is not a text of its own in the log.
fn field(name: &str, value: &Value) -> String {
    let shown = match name {
        "on" => LockOn::deserialize(value).ok().map(|on| on.to_string()),
        "expires" => value.as_u64().map(console::time),
        _ => None,
    };
    shown.unwrap_or_else(|| plain(value))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join("; "),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let (as_is, escaped) = if c.is_control() { (None, Some(c.escape_default())) } else { (Some(c), None) };
    as_is.into_iter().chain(escaped.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_read_well_and_move_no_cursor() {
        let decision = json!({
            "seq": 7, "time": "2026-01-31T14:05:00.000Z", "event": "decision", "request_id": "01J", "outcome": "deny",
            "issuer": "corp", "user": "ada", "address": "192.0.2.1", "service": "billing", "method": "DELETE",
            "path": "/v1/invoices/7", "missing": ["role billing-admin"], "mac": "x",
        });
        assert_eq!(
            line(&decision),
            "2026-01-31 14:05:00.000Z  deny   DELETE billing/v1/invoices/7  ada (corp)  needs role billing-admin  from 192.0.2.1  01J"
        );
        let end = json!({
            "time": "2026-01-31T14:05:00.001Z", "event": "end", "request_id": "01J", "status": 403, "ended": "done", "service": "billing",
            "reason": "denied", "bytes_in": 0, "bytes_out": 12, "duration_ms": 1, "address": "192.0.2.1",
        });
        assert_eq!(
            line(&end),
            "2026-01-31 14:05:00.001Z  end    403 billing done (denied)  1 ms  0 B in  12 B out  from 192.0.2.1  01J"
        );
        let tcp = json!({
            "time": "2026-01-31T14:05:00.001Z", "event": "decision", "request_id": "01K", "outcome": "allow", "address": "192.0.2.1",
            "issuer": "corp", "user": "ada", "service": "line", "method": "CONNECT", "path": "/.postern/tcp/line",
        });
        assert_eq!(
            line(&tcp),
            "2026-01-31 14:05:00.001Z  allow  CONNECT line  ada (corp)  from 192.0.2.1  01K"
        );
        let on = |on: &LockOn| {
            line(
                &json!({ "time": "2026-01-31T14:05:00.001Z", "event": "lock", "on": on, "expires": 1_769_868_300, "uid": 0 }),
            )
        };
        let ada = LockOn::User { issuer: "main".parse().unwrap(), name: "ada".to_owned() };
        let shown = on(&ada);
        assert!(shown.contains("  on user main/ada  ") || shown.ends_with("  on user main/ada"), "{shown}");
        assert!(shown.contains("  expires 2026-01-31 14:05Z"), "{shown}");
        assert!(on(&LockOn::All).contains("  on everything"));
        let event = json!({ "time": "2026-01-31T14:05:00.002Z", "event": "tunnel-closed", "agent": "dc1", "reason": "\u{1b}[2J", "lock": null });
        assert_eq!(line(&event), "2026-01-31 14:05:00.002Z  tunnel-closed  agent dc1  reason \\u{1b}[2J");
    }
}
