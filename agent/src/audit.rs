//! The agent's own audit log: takes each request that a relay sends, with what became of it, and the heads of the relay's log; gives one
//! line each. What a relay says of itself can be held against it. Lines that find the disk full are counted, and a later line tells.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use postern_base::audit::{Log, LogSettings, Queue, Time, now};
use postern_wire::head::{RequestHead, Stage};
use serde::Serialize;
use serde_json::{Value, json};

use crate::identity::AgentIdentity;
use crate::observe::stage_name;
use crate::settings::RelayAddress;

/// No path that our relay sends is longer; another relay must not fill the disk with one line.
const PATH: usize = 8 * 1024;
/// Ids, names, methods and reasons.
const TEXT: usize = 512;

/// Where lines go; nowhere, where the configuration says so.
#[derive(Debug)]
pub struct Audit(Option<Log>);

/// An end of the log for what comes over one tunnel.
#[derive(Debug)]
pub struct AuditQueue {
    queue: Option<Queue>,
    relay: Arc<str>,
}

#[derive(Serialize)]
struct Told {
    time: Time,
    event: &'static str,
    #[serde(flatten)]
    detail: Value,
}

#[derive(Serialize)]
struct Line<'a> {
    time: Time,
    event: &'static str,
    /// The relay's.
    request_id: &'a str,
    /// Which relay sent it.
    relay: &'a str,
    /// What it was for.
    service: &'a str,
    /// `CONNECT` for TCP services.
    method: &'a str,
    /// Without the query.
    path: &'a str,
    /// `served`, `refused` here, `failed` at the upstream, or `cut` by the relay or its caller.
    outcome: &'static str,
    /// Where it failed: `agent`, `verify`, `connect`, `tls`, `upstream` or `timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'static str>,
    /// In words.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// Until its answer's end.
    duration_ms: u64,
}

/// One request while it is served; its line is written when it is dropped, however it ended.
#[derive(Debug)]
pub struct Entry<'a> {
    queue: &'a AuditQueue,
    began: Instant,
    request_id: &'a str,
    service: &'a str,
    method: &'a str,
    path: &'a str,
    outcome: &'static str,
    stage: Option<&'static str>,
    reason: Option<String>,
}

impl Audit {
    /// Opens the log and says who begins.
    pub fn open(settings: Option<&LogSettings>, identity: &AgentIdentity) -> io::Result<Self> {
        let log = settings.map(|settings| Log::open(settings, None)).transpose()?;
        let audit = Self(log);
        let version = env!("CARGO_PKG_VERSION");
        audit.event(
            "start",
            json!({ "agent": identity.name(), "instance": identity.instance(), "version": version }),
        );
        Ok(audit)
    }

    /// An end of the log for a tunnel to this relay.
    pub fn queue(&self, relay: &RelayAddress) -> AuditQueue {
        AuditQueue { queue: self.0.as_ref().map(Log::queue), relay: relay.to_string().into() }
    }

    pub fn event(&self, kind: &'static str, detail: Value) {
        if let Some(log) = &self.0 {
            log.record(&Told { time: now(), event: kind, detail });
        }
    }

    /// Writes what is queued and closes the file.
    pub fn close(&self) {
        self.event("stop", json!({}));
        if let Some(log) = &self.0 {
            log.close();
        }
    }
}

impl AuditQueue {
    /// A request came.
    pub fn request<'a>(&'a self, head: &RequestHead<'a>) -> Entry<'a> {
        let (request_id, service, method, path) = match head {
            RequestHead::Http { request_id, service, method, path_and_query, .. } => {
                (*request_id, *service, *method, path_and_query.split('?').next().unwrap_or_default())
            }
            RequestHead::Tcp { request_id, service, .. } => (*request_id, *service, "CONNECT", ""),
        };
        Entry {
            queue: self,
            began: Instant::now(),
            request_id: cut(request_id, TEXT),
            service: cut(service, TEXT),
            method: cut(method, TEXT),
            path: cut(path, PATH),
            outcome: "cut",
            stage: None,
            reason: None,
        }
    }
}

impl Entry<'_> {
    /// The upstream's answer went back.
    pub fn served(&mut self) {
        self.outcome = "served";
    }

    /// There was no answer of an upstream: this agent refused, or what it tried failed.
    pub fn failed(&mut self, stage: Stage, reason: &str) {
        self.outcome = match stage {
            Stage::Agent | Stage::Verify => "refused",
            Stage::Connect | Stage::Tls | Stage::Upstream | Stage::Timeout => "failed",
        };
        self.stage = Some(stage_name(stage));
        self.reason = Some(cut(reason, TEXT).to_owned());
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let Some(queue) = &self.queue.queue else { return };
        let line = Line {
            time: now(),
            event: "request",
            request_id: self.request_id,
            relay: &self.queue.relay,
            service: self.service,
            method: self.method,
            path: self.path,
            outcome: self.outcome,
            stage: self.stage,
            reason: self.reason.as_deref(),
            duration_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        // Without room it is counted, and a later line tells.
        let _ = queue.record(&line);
    }
}

/// At most so many bytes of a text.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use postern_base::audit::{Destination, Rotate, WhenFull};
    use postern_wire::head::{CallerInfo, Fields};

    use super::*;

    #[test]
    fn a_request_has_one_line_without_its_query_however_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let rotate = Rotate { size: None, keep_for: None };
        let settings =
            LogSettings { to: Destination::File(path.clone()), rotate, reserve: 0, full: WhenFull::Drop };
        let audit = Audit(Some(Log::open(&settings, None).unwrap()));
        let queue = audit.queue(&"relay.example.com".parse().unwrap());
        let caller = || CallerInfo {
            issuer: "i",
            subject: "s",
            client: None,
            scopes: vec![],
            roles: vec![],
            expires: 0,
        };
        let fields = HeaderMap::new();
        let long = format!("/{}", "é".repeat(PATH));
        for path in ["/v1/x?secret=1", &long, "/v1/y"] {
            let head = RequestHead::Http {
                request_id: "r1",
                traceparent: "",
                service: "billing",
                method: "GET",
                path_and_query: path,
                fields: Fields::Map(&fields),
                caller: caller(),
                credential: None,
                upgrade: None,
            };
            let mut entry = queue.request(&head);
            match path {
                "/v1/x?secret=1" => entry.served(),
                "/v1/y" => entry.failed(Stage::Verify, "not here"),
                _ => {}
            }
        }
        let tcp = RequestHead::Tcp {
            request_id: "r2",
            traceparent: "",
            service: "db",
            caller: caller(),
            credential: None,
        };
        queue.request(&tcp).failed(Stage::Connect, "refused");
        audit.close();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(!text.contains("secret"), "{text}");
        let shown: Vec<_> = lines[1..5]
            .iter()
            .map(|line| {
                assert_eq!(
                    (line["event"].as_str(), line["relay"].as_str()),
                    (Some("request"), Some("relay.example.com:443"))
                );
                let text =
                    |name: &str| line[name].as_str().unwrap_or("-").chars().take(8).collect::<String>();
                [
                    text("request_id"),
                    text("method"),
                    text("path"),
                    text("outcome"),
                    text("stage"),
                    text("reason"),
                ]
                .join(" ")
            })
            .collect();
        assert_eq!(
            shown,
            [
                "r1 GET /v1/x served - -",
                "r1 GET /ééééééé cut - -",
                "r1 GET /v1/y refused verify not here",
                "r2 CONNECT  failed connect refused",
            ]
        );
        assert!(lines[2]["path"].as_str().unwrap().len() <= PATH);
        assert_eq!(lines[5]["event"], "stop");
    }
}
