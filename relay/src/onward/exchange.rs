//! Tokens for upstreams in exchange for callers' own (RFC 8693): takes a permit and the token that was shown; gives the Authorization field
//! for the upstream; refuses where the issuer does, and where it does not answer. What was given is kept for the caller's next requests
//! at the service, and the issuer is asked once however many of them come together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use http::HeaderValue;
use moka::Expiry;
use moka::future::Cache;
use postern_base::id::IssuerName;
use postern_base::sync::lock;
use postern_gate::token::{ExchangeError, Exchanged, Issuers, Wanted};
use tokio::sync::Semaphore;

use crate::request::authorize::Permitted;
use crate::settings::Exchange;

/// Tokens kept, of 2 KiB at most times: some 10,000 callers.
const KEPT: u64 = 10_000;
/// What arrives at the upstream has at least this long to live, where the issuer gives it as long.
const MARGIN: Duration = Duration::from_secs(10);
/// A token whose life the issuer does not tell.
const UNTOLD: Duration = Duration::from_secs(30);
/// So that the issuer is asked again about callers that it no longer wants.
const LONGEST: Duration = Duration::from_mins(5);
/// An issuer that refuses is not asked with every request.
const REFUSED: Duration = Duration::from_secs(2);
/// Exchanges under way with one issuer: it gives hundreds a second so. One that is slow keeps none from another.
const AT_ONCE: usize = 64;
/// Issuers whose turns are kept, beside those under way: more than one configuration has.
const ISSUERS: usize = 256;
/// For one request, whoever of several does the asking: the issuer has 5 s, and a caller that leaves hands its turn on.
const PATIENCE: Duration = Duration::from_secs(10);

/// A field for the upstream, and until when.
#[derive(Debug, Clone)]
struct Given {
    authorization: HeaderValue,
    until: SystemTime,
}

type Outcome = Result<Given, ExchangeError>;

/// The tokens lately given.
#[derive(Debug)]
pub struct Exchanges {
    known: Cache<[u8; 32], Outcome>,
    turns: Mutex<HashMap<IssuerName, Arc<Semaphore>>>,
}

struct Keep;

impl Expiry<[u8; 32], Outcome> for Keep {
    fn expire_after_create(&self, _: &[u8; 32], outcome: &Outcome, _: Instant) -> Option<Duration> {
        let left = |given: &Given| given.until.duration_since(SystemTime::now()).unwrap_or_default();
        Some(outcome.as_ref().map_or(REFUSED, left))
    }
}

impl Default for Exchanges {
    fn default() -> Self {
        let known = Cache::builder().max_capacity(KEPT).expire_after(Keep).build();
        Self { known, turns: Mutex::default() }
    }
}

impl Exchanges {
    /// The Authorization field for the service's upstream.
    pub async fn authorization(
        &self,
        issuers: &Arc<Issuers>,
        permitted: &Permitted,
        token: &str,
        exchange: &Exchange,
        now: SystemTime,
    ) -> Result<HeaderValue, ExchangeError> {
        let principal = permitted.principal();
        let service = permitted.service().name.as_str();
        let key = key(principal.issuer(), issuers.version(principal.issuer()), service, token, exchange);
        let wanted = Wanted {
            audience: exchange.audience.as_deref(),
            resource: exchange.resource.as_deref(),
            scope: exchange.scope.as_deref(),
        };
        let ask = || async {
            let turns = self.turns(principal.issuer());
            let _turn = turns.acquire().await.map_err(|_| ExchangeError::Unavailable)?;
            let given = issuers.exchange(principal.issuer(), token, &wanted).await?;
            kept(&given, token, principal.expires_at(), now)
        };
        let asked = async {
            match self.known.get_with(key, ask()).await {
                // A clock that was set may have outrun the cache's own.
                Ok(given) if given.until <= now => {
                    self.known.invalidate(&key).await;
                    self.known.get_with(key, ask()).await
                }
                outcome => outcome,
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, asked).await;
        outcome.map_err(|_| ExchangeError::Unavailable)?.map(|given| given.authorization)
    }

    fn turns(&self, issuer: &IssuerName) -> Arc<Semaphore> {
        // Each change is one insertion, or takes out what nobody uses.
        let mut all = lock(&self.turns);
        if let Some(turns) = all.get(issuer) {
            return turns.clone();
        }
        if all.len() >= ISSUERS {
            all.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        all.entry(issuer.clone()).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))).clone()
    }
}

/// What was given, kept for no longer than it, or the caller's own token, lives.
fn kept(given: &Exchanged, shown: &str, shown_until: SystemTime, now: SystemTime) -> Outcome {
    if given.token.expose() == shown {
        return Err(ExchangeError::Malformed("it gave the caller's own token back"));
    }
    let mut authorization = HeaderValue::try_from(format!("Bearer {}", given.token.expose()))
        .map_err(|_| ExchangeError::Malformed("its token does not fit into a header field"))?;
    authorization.set_sensitive(true);
    let life = given.expires_in.map_or(UNTOLD, |life| life.saturating_sub(MARGIN).max(life / 2));
    let until = (now + life.min(LONGEST)).min(shown_until.max(now));
    Ok(Given { authorization, until })
}

/// An issuer as it is configured, a token, a service and what is asked for: what differs in any of them is another key.
fn key(
    issuer: &IssuerName,
    version: Option<u64>,
    service: &str,
    token: &str,
    exchange: &Exchange,
) -> [u8; 32] {
    let version = version.map_or(String::new(), |version| version.to_string());
    let asked = [&exchange.audience, &exchange.resource, &exchange.scope];
    let asked = asked.map(|part| part.as_deref().unwrap_or_default());
    let mut context = Context::new(&SHA256);
    for part in [issuer.as_str(), &version, service, token].into_iter().chain(asked) {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref());
    key
}

#[cfg(test)]
mod tests {
    use postern_base::secret::Secret;

    use super::*;

    #[test]
    fn what_is_kept_outlives_neither_token() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let until = |expires_in: Option<u64>, shown: u64| {
            let given =
                Exchanged { token: Secret::new("theirs"), expires_in: expires_in.map(Duration::from_secs) };
            let kept = kept(&given, "ours", now + Duration::from_secs(shown), now).unwrap();
            kept.until.duration_since(now).unwrap().as_secs()
        };
        assert_eq!(until(Some(120), 600), 110);
        assert_eq!(until(Some(4), 600), 2);
        assert_eq!(until(Some(86_400), 3600), 300);
        assert_eq!(until(None, 600), 30);
        assert_eq!(until(Some(120), 20), 20, "the caller's own token ends first");
    }

    #[test]
    fn no_issuer_takes_anothers_turns_or_answers() {
        let exchanges = Exchanges::default();
        let (corp, partners): (IssuerName, IssuerName) =
            ("corp".parse().unwrap(), "partners".parse().unwrap());
        let all = exchanges.turns(&corp).try_acquire_many_owned(64).unwrap();
        assert!(exchanges.turns(&corp).try_acquire().is_err(), "a bound for each");
        assert!(exchanges.turns(&partners).try_acquire().is_ok(), "its own");
        for n in 0..ISSUERS {
            exchanges.turns(&format!("i{n}").parse().unwrap());
        }
        assert!(exchanges.turns(&corp).try_acquire().is_err(), "what is in use stays");
        assert!(exchanges.turns.lock().unwrap().len() <= ISSUERS);
        drop(all);

        let exchange = Exchange { audience: Some("billing".into()), resource: None, scope: None };
        let of = |issuer, version, service| key(issuer, version, service, "token", &exchange);
        assert_eq!(of(&corp, Some(1), "wiki"), of(&corp, Some(1), "wiki"));
        assert_ne!(of(&corp, Some(1), "wiki"), of(&corp, Some(2), "wiki"), "its settings changed");
        assert_ne!(of(&corp, Some(1), "wiki"), of(&corp, None, "wiki"));
        assert_ne!(of(&corp, Some(1), "wiki"), of(&partners, Some(1), "wiki"));
        assert_ne!(of(&corp, Some(1), "wiki"), of(&corp, Some(1), "billing"));
    }

    #[test]
    fn the_callers_own_token_is_no_exchange() {
        let now = SystemTime::now();
        let given = |token: &str| Exchanged { token: Secret::new(token), expires_in: None };
        assert!(matches!(kept(&given("ours"), "ours", now, now), Err(ExchangeError::Malformed(_))));
        assert!(matches!(kept(&given("a\nb"), "ours", now, now), Err(ExchangeError::Malformed(_))));
        assert!(!format!("{:?}", kept(&given("hidden"), "ours", now, now)).contains("hidden"));
    }
}
