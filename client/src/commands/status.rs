//! `status`: whom this machine acts as, whether the relay is reached and how fast, what is up, and which forwards run here. Exit code 7
//! without the relay, 4 without a session. `--watch` draws it again every two seconds.
//! JSON: [`Status`]; with `--watch` one a line each time.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::ls::state;
use crate::failure::{Exit, Failure};
use crate::forward::board::{self, Posted};
use crate::output::Output;
use crate::output::text::{Afar, local_clock, table};
use crate::relay_api::{Catalogue, Service};

const EVERY: Duration = Duration::from_secs(2);

pub(super) async fn run(context: &Context, watch: bool, out: &Output) -> Result<u8, Failure> {
    let mut shown = String::new();
    loop {
        let status = Status::look(context).await;
        if out.json {
            out.json(&status);
        } else {
            let text = status.text(local_clock);
            if watch && std::io::stdout().is_terminal() {
                // The screen is cleared only now that there is something to show.
                out.raw(b"\x1b[H\x1b[2J");
                out.states(&text);
            } else if text != shown {
                out.states(&text);
            }
            shown = text;
        }
        if !watch {
            return Ok(status.code());
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// `status --json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Status {
    relay: Relay,
    session: Session,
    services: Vec<Service>,
    forwards: Vec<Posted>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Relay {
    url: String,
    reached: bool,
    version: Option<Afar>,
    /// Of a question on a connection that stands.
    latency_ms: Option<f64>,
    error: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Session {
    profile: String,
    user: Option<Afar>,
    /// The end of the token at hand, in seconds since the epoch.
    until: Option<u64>,
    renews: bool,
    error: Option<String>,
    fix: Option<String>,
    #[serde(skip)]
    exit: Option<Exit>,
}

impl Status {
    async fn look(context: &Context) -> Self {
        let api = &context.relay;
        let mut relay =
            Relay { url: api.url.origin(), reached: false, version: None, latency_ms: None, error: None };
        match api.published().await {
            Ok(published) => {
                let begin = Instant::now();
                relay.reached = true;
                relay.version = published.version;
                relay.latency_ms =
                    api.published().await.is_ok().then(|| begin.elapsed().as_secs_f64() * 1000.0);
            }
            Err(error) => relay.error = Some(error.to_string()),
        }
        // Nobody is asked to log in: this only looks.
        let asked: Result<Catalogue, Failure> = if relay.reached {
            context.tokens.shown(None, Duration::ZERO, |pass| async move { api.services(&pass).await }).await
        } else {
            let pass = context.tokens.pass(None, Duration::ZERO).await.map_err(Failure::from);
            pass.and_then(|_| Err(Failure::new(Exit::RelayUnreachable, "")))
        };
        let profile = context.account.profile.to_string();
        let mut session = Session {
            profile,
            user: None,
            until: None,
            renews: context.tokens.renews(),
            error: None,
            fix: None,
            exit: None,
        };
        let mut services = Vec::new();
        match asked {
            Ok(catalogue) => {
                session.user = Some(catalogue.principal.user);
                session.until = Some(catalogue.principal.expires);
                services = catalogue.services;
            }
            Err(failure) if failure.exit == Exit::RelayUnreachable => {}
            Err(failure) => {
                let failure = context.advised(failure);
                (session.error, session.exit) = (Some(failure.message), Some(failure.exit));
                session.fix = failure.fix;
            }
        }
        let forwards = board::posted(&context.settings.dir);
        Self { relay, session, services, forwards }
    }

    fn code(&self) -> u8 {
        match (self.relay.reached, self.session.exit) {
            (false, _) => Exit::RelayUnreachable.code(),
            (true, Some(exit)) => exit.code(),
            (true, None) => 0,
        }
    }

    fn text(&self, clock: impl Fn(u64) -> String) -> String {
        let Self { relay, session, services, forwards } = self;
        let host = relay.url.trim_start_matches("https://");
        let reached = match (&relay.error, relay.latency_ms) {
            (Some(error), _) => format!("✗ {error}"),
            (None, Some(latency)) => format!("✓ {host}, answers in {latency:.1} ms"),
            (None, None) => format!("✓ {host}"),
        };
        let renews = if session.renews { "; renews itself" } else { "" };
        let who = match (&session.error, &session.user, session.until) {
            (Some(error), ..) => format!("✗ {error}"),
            (None, Some(user), Some(until)) => format!("✓ {user} until {}{renews}", clock(until)),
            (None, ..) => "? not known without the relay".to_owned(),
        };
        let mut heads = vec![vec!["relay".to_owned(), reached], vec!["session".to_owned(), who]];
        if session.user.is_some() {
            let up = services.iter().filter(|service| service.up).count();
            let down = services.len() - up;
            let down = if down == 0 { String::new() } else { format!(", {down} down") };
            heads.push(vec!["services".to_owned(), format!("{up} up{down}")]);
        }
        let fix = session.fix.as_ref().map(|fix| format!("\n  Fix: {fix}")).unwrap_or_default();
        let mut parts = vec![format!("{}{fix}", table(&[], &heads, false))];
        if !services.is_empty() {
            let row = |service: &Service| {
                vec![service.name.to_string(), service.kind.to_string(), state(service, &clock)]
            };
            let rows: Vec<_> = services.iter().map(row).collect();
            parts.push(table(&["SERVICE", "KIND", "AGENT"], &rows, false));
        }
        if !forwards.is_empty() {
            let rows: Vec<_> = forwards.iter().flat_map(|forward| rows_of(forward, &clock)).collect();
            parts.push(table(&["FORWARD", "SERVICE", "SINCE", "PID"], &rows, false));
        }
        parts.join("\n\n")
    }
}

fn rows_of(forward: &Posted, clock: &impl Fn(u64) -> String) -> Vec<Vec<String>> {
    let row = |served: &board::Served| {
        let service = served.service.clone().unwrap_or_else(|| "all".to_owned());
        vec![served.place.clone(), service, clock(forward.since), forward.pid.to_string()]
    };
    forward.serves.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> Status {
        let services = json!([
            { "name": "billing", "kind": "http", "up": true },
            { "name": "wiki", "kind": "http", "up": false, "down_since": 7 },
        ]);
        let served = |place: &str, service: Option<&str>| board::Served {
            place: place.into(),
            service: service.map(str::to_owned),
        };
        Status {
            relay: Relay {
                url: "https://relay.example.com".into(),
                reached: true,
                version: Some("0.1.0".into()),
                latency_ms: Some(12.34),
                error: None,
            },
            session: Session {
                profile: "relay.example.com".into(),
                user: Some("ada@example.com".into()),
                until: Some(9),
                renews: true,
                error: None,
                fix: None,
                exit: None,
            },
            services: serde_json::from_value(services).unwrap(),
            forwards: vec![Posted {
                pid: 4711,
                relay: "relay.example.com".parse().unwrap(),
                since: 8,
                serves: vec![
                    served("http://127.0.0.1:8080", Some("billing")),
                    served("socks5h://127.0.0.1:1080", None),
                ],
            }],
        }
    }

    #[test]
    fn all_is_seen_at_once() {
        let clock = |seconds| format!("14:0{seconds}");
        let mut status = status();
        insta::assert_snapshot!(status.text(clock), @r"
        relay     ✓ relay.example.com, answers in 12.3 ms
        session   ✓ ada@example.com until 14:09; renews itself
        services  1 up, 1 down

        SERVICE  KIND  AGENT
        billing  http  ● up
        wiki     http  ○ down since 14:07

        FORWARD                   SERVICE  SINCE  PID
        http://127.0.0.1:8080     billing  14:08  4711
        socks5h://127.0.0.1:1080  all      14:08  4711
        ");
        assert_eq!(status.code(), 0);
        (status.services, status.forwards) = (Vec::new(), Vec::new());
        (status.session.user, status.session.until) = (None, None);
        (status.relay.reached, status.relay.error) =
            (false, Some("relay.example.com cannot be reached".into()));
        insta::assert_snapshot!(status.text(clock), @r"
        relay    ✗ relay.example.com cannot be reached
        session  ? not known without the relay
        ");
        assert_eq!(status.code(), 7);
        (status.relay.reached, status.relay.error) = (true, None);
        (status.session.error, status.session.exit) = (Some("not logged in".into()), Some(Exit::LoginNeeded));
        status.session.fix = Some("run: postern login relay.example.com".into());
        insta::assert_snapshot!(status.text(clock), @r"
        relay    ✓ relay.example.com, answers in 12.3 ms
        session  ✗ not logged in
          Fix: run: postern login relay.example.com
        ");
        assert_eq!(status.code(), 4);
    }
}
