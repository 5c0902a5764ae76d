//! What only whoever serves can try: the upstreams, and the issuers of services that verify. Run by the agent itself where one runs, with
//! its own secrets and in its own place on the network; else by `doctor`.

use futures_util::future::join_all;
use postern_base::console::checks::Check;

use crate::upstream::health::Health;
use crate::upstream::{CallError, Upstream, probe};
use crate::verify::Verifier;

/// Everything, at once.
pub async fn of(health: &Health, verifier: Option<&Verifier>) -> Vec<Check> {
    let upstreams = join_all(health.upstreams().iter().map(|upstream| upstream_of(health, upstream)));
    let (mut checks, issuers) = tokio::join!(upstreams, issuers(verifier));
    checks.extend(issuers);
    checks
}

async fn upstream_of(health: &Health, upstream: &Upstream) -> Check {
    let found = probe::each(health, upstream).await;
    let name = format!("upstream {}", upstream.service.name);
    let addresses = &upstream.service.addresses;
    let works = found.iter().filter(|found| found.is_ok()).count();
    let mut failed =
        found.iter().zip(addresses).filter_map(|(found, address)| Some((found.as_ref().err()?, address)));
    let Some((error, address)) = failed.next() else {
        return Check::good(name, probe::told(upstream, &found).1);
    };
    let what = match error {
        // The fix says the rest.
        CallError::Refused => "connection refused".to_owned(),
        CallError::Busy(_)
        | CallError::Connect(_)
        | CallError::Tls(_)
        | CallError::Answer(_)
        | CallError::Unanswered(_)
        | CallError::Silent(_) => error.to_string(),
    };
    match (works, addresses.len()) {
        (0, _) => Check::bad(name, format!("{address}: {what}"), fix(error)),
        (works, all) => {
            Check::warn(name, format!("{works} of {all} addresses work; {address}: {what}"), fix(error))
        }
    }
}

fn fix(error: &CallError) -> &'static str {
    match error {
        CallError::Refused => "start the service, or correct `upstream` in agent.toml",
        CallError::Connect(_) => {
            "check the address in agent.toml, this machine's DNS, and firewalls on the way"
        }
        CallError::Tls(_) => "set `tls.ca` or `tls.server_name` to what the upstream's certificate needs",
        CallError::Answer(_) | CallError::Unanswered(_) => {
            "look at the service's own log; correct `upstream` or `health.path` if it is another service"
        }
        CallError::Silent(_) => "look whether the service hangs, or something on the way drops packets",
        CallError::Busy(_) => "raise `limit.concurrent`",
    }
}

/// Whether the callers' tokens could be judged here.
async fn issuers(verifier: Option<&Verifier>) -> Vec<Check> {
    let Some(verifier) = verifier else { return Vec::new() };
    verifier.warm().await;
    let now = std::time::SystemTime::now();
    let of = |issuer: postern_gate::token::IssuerHealth| {
        let name = format!("issuer {}", issuer.name);
        let fix = "check that this machine reaches the issuer (`proxy`, `ca`), or give its keys by `jwks = { file = \"…\" }`";
        match (issuer.is_usable(now), issuer.error) {
            (true, None) if issuer.has_keys => Check::good(name, format!("{} key(s)", issuer.keys)),
            (true, None) => Check::good(name, "it answers about tokens"),
            (true, Some(error)) => {
                Check::warn(name, format!("what was fetched before still serves; now: {error}"), fix)
            }
            (false, error) => Check::bad(name, error.unwrap_or_else(|| "no usable keys".to_owned()), fix),
        }
    };
    verifier.issuers().into_iter().map(of).collect()
}
