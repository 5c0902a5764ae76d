//! Tries a service's upstream when somebody asks: a connection to each address, TLS, and the health check's path where the file has one.
//! Takes the service's name; gives what was seen, without a word of where the upstream is. Refuses to be many at once, and to be long.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::health::Health;
use super::{CallError, Upstream};
use crate::supervisor::Agent;

/// Whoever asks waits for it.
const LIMIT: Duration = Duration::from_secs(5);

/// What trying an upstream showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// Whether a request would get through to one of its addresses.
    pub reached: bool,
    /// Names no address.
    pub detail: String,
    pub took: Duration,
}

/// Tries every address of one service, for a relay that asks.
pub async fn probe(agent: &Agent, service: &str) -> Probed {
    let began = Instant::now();
    let upstream = agent.health.upstreams().iter().find(|upstream| upstream.service.name.as_str() == service);
    let (reached, detail) = match upstream {
        Some(upstream) => told(upstream, &each(&agent.health, upstream).await),
        None => (false, "this agent has no such service: add it to agent.toml and restart it".to_owned()),
    };
    Probed { reached, detail, took: began.elapsed() }
}

/// What each of an upstream's addresses answers now, in the order of the file.
pub async fn each(health: &Health, upstream: &Upstream) -> Vec<Result<(), CallError>> {
    let members = 0..upstream.service.addresses.len();
    let tries = members.map(async |member| {
        let Ok(_place) = health.probes.acquire().await else { return Err(CallError::Silent(LIMIT)) };
        health.look(upstream, member).await
    });
    let tries = tries.map(|one| tokio::time::timeout(LIMIT, one));
    let found = join_all(tries).await;
    found.into_iter().map(|one| one.unwrap_or(Err(CallError::Silent(LIMIT)))).collect()
}

/// Whether it works, and how that reads.
pub fn told(upstream: &Upstream, found: &[Result<(), CallError>]) -> (bool, String) {
    let path = upstream.service.health.as_ref().and_then(|check| check.path.as_ref());
    let well = if path.is_some() { "its health check passes" } else { "it takes connections" };
    summary(found, well)
}

fn summary(found: &[Result<(), CallError>], well: &str) -> (bool, String) {
    let failed: Vec<_> =
        found.iter().enumerate().filter_map(|(at, one)| Some((at, one.as_ref().err()?))).collect();
    match (failed.as_slice(), found.len()) {
        ([], _) => (true, well.to_owned()),
        ([(_, error)], 1) => (false, error.to_string()),
        ([(at, error), ..], all) => {
            let works = all - failed.len();
            let text = format!("{works} of {all} addresses work; number {}: {error}", at + 1);
            (works > 0, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postern_base::id::ServiceName;

    use super::*;
    use crate::settings::Settings;

    fn health(services: &str) -> Health {
        let text = format!("version = 1\nrelay = \"r.example.com\"\nstate = \"s\"\n{services}");
        let source = postern_base::config::Source::from_text("agent.toml", text);
        let file = source.parse().unwrap();
        let settings = Settings::new(&file, std::path::Path::new("/")).unwrap();
        assert!(settings.services.contains_key("a".parse::<ServiceName>().unwrap().as_str()));
        Health::new(&settings).unwrap()
    }

    #[tokio::test]
    async fn every_address_is_tried_and_none_is_named() {
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (open_at, closed_at) = (open.local_addr().unwrap(), closed);
        let health = health(&format!(
            "[services.a]\nupstream = [\"http://{open_at}\", \"http://{closed_at}\"]\n[services.b]\nupstream = \"tcp://{closed_at}\""
        ));
        let [a, b] = health.upstreams() else { panic!() };
        let (reached, detail) = told(a, &each(&health, a).await);
        assert!(
            reached && detail.starts_with("1 of 2 addresses work; number 2: connection refused"),
            "{detail}"
        );
        let (reached, detail) = told(b, &each(&health, b).await);
        assert!(!reached && detail.starts_with("connection refused"), "{detail}");
        for address in [open_at, closed_at] {
            assert!(!detail.contains(&address.port().to_string()), "{detail}");
        }
    }

    #[test]
    fn an_error_is_told_until_all_addresses_answer_again() {
        let services = "[services.a]\nupstream = [\"http://127.0.0.1:1\", \"http://127.0.0.1:2\"]\n";
        let health = health(services);
        let [a] = health.upstreams() else { panic!() };
        a.failed(&CallError::Refused);
        a.balance.set_down(0, true);
        a.answered();
        assert!(a.last_error().is_some(), "one address is down");
        a.balance.set_down(0, false);
        a.answered();
        assert_eq!(a.last_error(), None);
    }

    #[tokio::test]
    async fn a_health_path_must_answer_well() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let health = Arc::new(health(&format!(
            "[services.a]\nupstream = \"http://{address}\"\nhealth = {{ path = \"/ping\" }}"
        )));
        let server = async {
            for status in ["200 OK", "503 Busy"] {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 1024];
                let read = stream.read(&mut head).await.unwrap();
                assert!(head[..read].starts_with(b"GET /ping "));
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let asks = async {
            let upstream = &health.upstreams()[0];
            let well = told(upstream, &each(&health, upstream).await);
            let ill = told(upstream, &each(&health, upstream).await);
            (well, ill)
        };
        let ((), (well, ill)) = tokio::join!(server, asks);
        assert_eq!(well, (true, "its health check passes".to_owned()));
        assert!(!ill.0 && ill.1.contains("status 503"), "{}", ill.1);
    }
}
