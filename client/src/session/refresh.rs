//! Takes an audience; gives an access token that lives long enough: the one at hand, the one another process has just got, or a new one
//! by the refresh token. One renewal at a time, among tasks and among processes; one that was begun is seen to its end, whoever stops waiting
//! for it, and what the issuer gave is kept before it is used. One that failed is not tried again for a while.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use oauth2::basic::BasicClient;
use oauth2::{ClientId, RefreshToken, TokenUrl};
use postern_base::http_client::HttpClient;
use postern_base::secret::Secret;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::lock::Lock;
use super::vault::Vault;
use super::{Access, Session, SessionError, Token, now};
use crate::issuer::{self, Granted, IssuerError};
use crate::relay_api::address::RelayUrl;

/// A token that the relay refused is renewed once it is this old: were a new one refused too, asking on would help nobody.
const DOUBT_AFTER: u64 = 30;
/// How long a failed renewal is not tried again: every request would wait for an issuer that is silent.
const REST: Duration = Duration::from_secs(5);
/// How long the end of the process waits for a renewal: an exchange (5 s at most) and the writing of a file.
const LEAVE: Duration = Duration::from_secs(10);

/// Why a session is over whose refresh token the issuer refused; said again whenever it is used.
const ENDED: &str = "the issuer ended it";

/// The access tokens for one relay; clones share them.
#[derive(Clone)]
pub(crate) struct Tokens {
    relay: RelayUrl,
    /// `POSTERN_TOKEN`: used as it is, no session is touched.
    fixed: Option<Secret>,
    vault: Vault,
    http: HttpClient,
    flight: Arc<Semaphore>,
    known: Arc<Mutex<Known>>,
    renewals: TaskTracker,
}

#[derive(Default)]
struct Known {
    session: Option<Session>,
    doubted: Option<Secret>,
    /// Renewals that failed, by audience as in [`Session::access`].
    resting: BTreeMap<String, Rest>,
}

struct Rest {
    until: Instant,
    error: IssuerError,
}

impl Tokens {
    /// `renewals` holds the renewals that are under way: see [`settle`].
    pub(crate) fn new(
        relay: RelayUrl,
        fixed: Option<Secret>,
        vault: Vault,
        http: HttpClient,
        renewals: TaskTracker,
    ) -> Self {
        let flight = Arc::new(Semaphore::new(1));
        Self { relay, fixed, vault, http, flight, known: Arc::default(), renewals }
    }

    /// A token for the relay (no audience) or for a service with an audience of its own, good for `min_ttl` more where the issuer
    /// gives such tokens at all.
    pub(crate) async fn access(
        &self,
        audience: Option<&str>,
        min_ttl: Duration,
    ) -> Result<Access, SessionError> {
        if let Some(token) = &self.fixed {
            return Ok(Access { token: Token(token.clone()), issued: 0, expires: u64::MAX });
        }
        if let Some(found) = self.at_hand(audience, min_ttl) {
            return found;
        }
        // The semaphore is never closed.
        let flight = self.flight.clone().acquire_owned().await;
        if let Some(found) = self.at_hand(audience, min_ttl) {
            return found;
        }
        let lock = self.vault.lock(&self.relay).await?;
        let relay = self.relay.clone();
        let session = self.vault.with(move |vault| vault.load(&relay)).await?;
        let session = session.ok_or_else(|| SessionError::None(self.relay.clone()))?;
        self.remember(session.clone());
        if let Some(found) = self.at_hand(audience, min_ttl) {
            return found;
        }
        // Up to here nothing is lost when the caller goes (a local program that closes its connection). A refresh token that was sent may be
        // spent, though: from here on a task of its own has permit and lock, and the caller only waits for it.
        let (tokens, audience) = (self.clone(), audience.map(str::to_owned));
        let renewal = self.renewals.spawn(async move {
            let _flight = flight;
            tokens.renew(session, lock, audience.as_deref()).await
        });
        let failed =
            |_| SessionError::Renewal { relay: self.relay.clone(), reason: "it failed badly".into() };
        renewal.await.map_err(failed)?
    }

    /// The relay refused this token: the next call renews it, unless it is new.
    pub(crate) fn doubt(&self, access: &Access) {
        if access.issued.saturating_add(DOUBT_AFTER) < now() {
            self.known().doubted = Some(access.token.0.clone());
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What can be said without asking anybody; `None`: it is time to renew.
    fn at_hand(&self, audience: Option<&str>, min_ttl: Duration) -> Option<Result<Access, SessionError>> {
        let known = self.known();
        let session = known.session.as_ref()?;
        let key = session.audience_key(audience);
        if let Some(found) = session.access.get(key).filter(|found| found.is_fresh(now(), min_ttl))
            && known.doubted.as_ref().is_none_or(|doubted| doubted.expose() != found.token.0.expose())
        {
            return Some(Ok(found.clone()));
        }
        let rest = known.resting.get(key).filter(|rest| Instant::now() < rest.until)?;
        Some(self.unrenewed(session, key, &rest.error))
    }

    /// What a failed renewal leaves: the token at hand while it is still good, else why there is none.
    fn unrenewed(&self, session: &Session, key: &str, error: &IssuerError) -> Result<Access, SessionError> {
        let reason = error.to_string();
        match (session.access.get(key).filter(|access| access.expires > now()), error) {
            (Some(access), _) => Ok(access.clone()),
            (None, IssuerError::Refused { .. }) if !key.is_empty() => {
                let (issuer, audience) = (session.issuer.clone(), key.to_owned());
                Err(SessionError::Audience { issuer, audience, reason })
            }
            (None, _) => Err(SessionError::Renewal { relay: self.relay.clone(), reason }),
        }
    }

    fn remember(&self, session: Session) {
        self.known().session = Some(session);
    }

    /// In memory first: should the vault fail, this process at least does not use the old token again.
    async fn keep(&self, session: Session, lock: Lock) -> Result<(), SessionError> {
        self.remember(session.clone());
        self.vault.save_locked(session, lock).await?;
        Ok(())
    }

    /// `session` is as the vault has it.
    async fn renew(
        &self,
        mut session: Session,
        lock: Lock,
        audience: Option<&str>,
    ) -> Result<Access, SessionError> {
        let key = session.audience_key(audience).to_owned();
        let at_least = session.access.get(&key).filter(|access| access.expires > now()).cloned();
        let over = |reason: String| SessionError::Over { relay: self.relay.clone(), reason };
        let Some(refresh) = session.refresh_token.clone() else {
            let nothing = "it ended, and the issuer gave nothing to renew it with";
            let reason = if session.ended { ENDED } else { nothing };
            return at_least.ok_or_else(|| over(reason.into()));
        };
        let resource = if key.is_empty() { session.resource.clone() } else { Some(key.clone()) };
        match ask(&self.http, &session, &refresh, resource.as_deref()).await {
            Ok(granted) => {
                let access = granted.access(now());
                session.access.retain(|_, old| old.expires > now());
                session.access.insert(key, access.clone());
                if let Some(rotated) = granted.refresh_token {
                    session.refresh_token = Some(rotated);
                }
                self.keep(session, lock).await?;
                Ok(access)
            }
            Err(IssuerError::Refused { code, .. }) if code == "invalid_grant" => {
                session.refresh_token = None;
                session.ended = true;
                self.keep(session, lock).await?;
                at_least.ok_or_else(|| over(ENDED.into()))
            }
            Err(error) => {
                tracing::info!(%error, "not renewed");
                let left = self.unrenewed(&session, &key, &error);
                self.known().resting.insert(key, Rest { until: Instant::now() + REST, error });
                left
            }
        }
    }
}

/// Called at the end of the process: waits for the renewals under way, for a while, or until a second interrupt.
pub(crate) async fn settle(renewals: &TaskTracker) {
    renewals.close();
    tokio::select! {
        biased;
        () = renewals.wait() => {}
        () = tokio::time::sleep(LEAVE) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

async fn ask(
    http: &HttpClient,
    session: &Session,
    refresh: &Token,
    resource: Option<&str>,
) -> Result<Granted, IssuerError> {
    let client = BasicClient::new(ClientId::new(session.client_id.clone()))
        .set_token_uri(TokenUrl::from_url(session.token_endpoint.clone()));
    let refresh = RefreshToken::new(refresh.0.expose().to_owned());
    let mut request = client.exchange_refresh_token(&refresh);
    if let Some(resource) = resource {
        request = request.add_extra_param("resource", resource);
    }
    let answer = request.request_async(&issuer::sender(http)).await?;
    Ok(Granted::new(&answer))
}

#[cfg(test)]
mod tests;
