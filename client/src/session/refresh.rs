//! Takes an audience; gives an access token that lives long enough: the one at hand, the one another process has just got, or a new one
//! by the refresh token or, for a program, by asking again. One renewal at a time, among tasks and among processes; one that was begun is seen to its end, whoever stops waiting
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
use super::machine::Asked;
use super::pass::{Nonce, Pass};
use super::vault::Vault;
use super::{Access, Session, SessionError, Token, now};
use crate::issuer::{self, Granted, IssuerError, Prover};
use crate::relay_api::RelayError;
use crate::relay_api::address::RelayUrl;

/// A token that the relay refused is renewed once it is this old: were a new one refused too, asking on would help nobody.
const DOUBT_AFTER: u64 = 30;
/// How long a failed renewal is not tried again: every request would wait for an issuer that is silent. Less while a token is still good
/// that ends sooner.
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
    /// `None`: the session lives in this process alone.
    vault: Option<Vault>,
    http: HttpClient,
    flight: Arc<Semaphore>,
    known: Arc<Mutex<Known>>,
    renewals: TaskTracker,
    /// The last ones of the relay and of the token endpoint.
    relay_nonce: Nonce,
    issuer_nonce: Nonce,
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
        let known = Known::default();
        Self { fixed, ..Self::over(relay, Some(vault), known, http, renewals) }
    }

    /// Of a session that is kept nowhere.
    pub(crate) fn in_memory(session: Session, http: HttpClient, renewals: TaskTracker) -> Self {
        let relay = session.relay.clone();
        let known = Known { session: Some(session), ..Known::default() };
        Self::over(relay, None, known, http, renewals)
    }

    fn over(
        relay: RelayUrl,
        vault: Option<Vault>,
        known: Known,
        http: HttpClient,
        renewals: TaskTracker,
    ) -> Self {
        Self {
            relay,
            fixed: None,
            vault,
            http,
            flight: Arc::new(Semaphore::new(1)),
            known: Arc::new(Mutex::new(known)),
            renewals,
            relay_nonce: Nonce::default(),
            issuer_nonce: Nonce::default(),
        }
    }

    /// Whether there may be another token after the one at hand.
    pub(crate) fn may_renew(&self) -> bool {
        self.fixed.is_none()
    }

    /// Makes a call with a token; once more with a new one when the relay refuses a token that has lived a while.
    ///
    /// # Errors
    /// There is no token, or the call failed.
    pub(crate) async fn shown<T, E, F>(
        &self,
        audience: Option<&str>,
        min_ttl: Duration,
        call: impl Fn(Pass) -> F,
    ) -> Result<T, E>
    where
        E: From<SessionError> + From<RelayError>,
        F: Future<Output = Result<T, RelayError>>,
    {
        let pass = self.pass(audience, min_ttl).await?;
        match call(pass.clone()).await {
            Err(error) if error.is_unauthorized() => {
                self.doubt(&pass);
                let renewed = self.pass(audience, min_ttl).await?;
                if renewed.is_same_token(&pass) {
                    return Err(error.into());
                }
                Ok(call(renewed).await?)
            }
            other => Ok(other?),
        }
    }

    /// A token for the relay (no audience) or for a service with an audience of its own, good for `min_ttl` more where the issuer
    /// gives such tokens at all.
    pub(crate) async fn pass(&self, audience: Option<&str>, min_ttl: Duration) -> Result<Pass, SessionError> {
        if let Some(token) = &self.fixed {
            return Ok(Pass::given(token));
        }
        if let Some(found) = self.at_hand(audience, min_ttl) {
            return found;
        }
        // The semaphore is never closed.
        let flight = self.flight.clone().acquire_owned().await;
        if let Some(found) = self.at_hand(audience, min_ttl) {
            return found;
        }
        let (session, lock) = match &self.vault {
            Some(vault) => {
                let (session, lock) = self.load(vault).await?;
                self.remember(session.clone());
                if let Some(found) = self.at_hand(audience, min_ttl) {
                    return found;
                }
                (session, Some(lock))
            }
            None => (self.known().session.clone().ok_or_else(|| self.none())?, None),
        };
        // Up to here nothing is lost when the caller goes (a local program that closes its connection). A refresh token that was sent may be
        // spent, though: from here on a task of its own has permit and lock, and the caller only waits for it.
        let (tokens, audience) = (self.clone(), audience.map(str::to_owned));
        let renewal = self.renewals.spawn(async move {
            let _flight = flight;
            tokens.renewed(session, lock, audience.as_deref()).await
        });
        let failed =
            |_| SessionError::Renewal { relay: self.relay.clone(), reason: "it failed badly".into() };
        renewal.await.map_err(failed)?
    }

    /// The session as it is kept, and the right to change it.
    async fn load(&self, vault: &Vault) -> Result<(Session, Lock), SessionError> {
        let lock = vault.lock(&self.relay).await?;
        let relay = self.relay.clone();
        let session = vault.with(move |vault| vault.load(&relay)).await?;
        Ok((session.ok_or_else(|| self.none())?, lock))
    }

    fn none(&self) -> SessionError {
        SessionError::None(self.relay.clone())
    }

    /// The relay refused this token: the next call renews it, unless it is new.
    pub(crate) fn doubt(&self, pass: &Pass) {
        if pass.issued().saturating_add(DOUBT_AFTER) < now() {
            self.known().doubted = Some(pass.token().clone());
        }
    }

    fn as_pass(&self, session: &Session, access: &Access) -> Pass {
        Pass::new(access.clone(), session.proof_key.as_ref(), &self.relay_nonce)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What can be said without asking anybody; `None`: it is time to renew.
    fn at_hand(&self, audience: Option<&str>, min_ttl: Duration) -> Option<Result<Pass, SessionError>> {
        let known = self.known();
        let session = known.session.as_ref()?;
        let key = session.audience_key(audience);
        if let Some(found) = session.access.get(key).filter(|found| found.is_fresh(now(), min_ttl))
            && known.doubted.as_ref().is_none_or(|doubted| doubted.expose() != found.token.0.expose())
        {
            return Some(Ok(self.as_pass(session, found)));
        }
        let rest = known.resting.get(key).filter(|rest| Instant::now() < rest.until)?;
        Some(self.unrenewed(session, key, &rest.error))
    }

    /// What a failed renewal leaves: the token at hand while it is still good, else why there is none.
    fn unrenewed(&self, session: &Session, key: &str, error: &IssuerError) -> Result<Pass, SessionError> {
        let reason = error.to_string();
        match (session.access.get(key).filter(|access| access.expires > now()), error) {
            (Some(access), _) => Ok(self.as_pass(session, access)),
            (None, error) if session.machine.is_some() && error.is_of_client() => {
                let (issuer, client_id) = (session.issuer.clone(), session.client_id.clone());
                Err(SessionError::Client { issuer, client_id, reason })
            }
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
    async fn keep(&self, session: Session, lock: Option<Lock>) -> Result<(), SessionError> {
        self.remember(session.clone());
        if let (Some(vault), Some(lock)) = (&self.vault, lock) {
            vault.save_locked(session, lock).await?;
        }
        Ok(())
    }

    /// `session` is as the vault has it, if there is one.
    async fn renewed(
        &self,
        mut session: Session,
        lock: Option<Lock>,
        audience: Option<&str>,
    ) -> Result<Pass, SessionError> {
        let key = session.audience_key(audience).to_owned();
        let at_least = session.access.get(&key).filter(|access| access.expires > now());
        let at_least = at_least.map(|access| self.as_pass(&session, access));
        let over = |reason: &str| SessionError::Over { relay: self.relay.clone(), reason: reason.to_owned() };
        if !session.renews() {
            let nothing = "it ended, and the issuer gave nothing to renew it with";
            return at_least.ok_or_else(|| over(if session.ended { ENDED } else { nothing }));
        }
        let resource = if key.is_empty() { session.resource.clone() } else { Some(key.clone()) };
        match self.ask(&session, resource).await {
            Ok(granted) => {
                let access = granted.access(now());
                let pass = self.as_pass(&session, &access);
                session.access.retain(|_, old| old.expires > now());
                session.access.insert(key, access);
                if let Some(rotated) = granted.refresh_token.filter(|_| session.machine.is_none()) {
                    session.refresh_token = Some(rotated);
                }
                self.keep(session, lock).await?;
                Ok(pass)
            }
            Err(IssuerError::Refused { code, .. })
                if code == "invalid_grant" && session.machine.is_none() =>
            {
                session.refresh_token = None;
                session.ended = true;
                self.keep(session, lock).await?;
                at_least.ok_or_else(|| over(ENDED))
            }
            Err(error) => {
                tracing::info!(%error, "not renewed");
                let left = self.unrenewed(&session, &key, &error);
                let life = left.as_ref().map_or(REST, |pass| pass.left() / 4);
                self.known().resting.insert(key, Rest { until: Instant::now() + REST.min(life), error });
                left
            }
        }
    }

    async fn ask(&self, session: &Session, resource: Option<String>) -> Result<Granted, IssuerError> {
        let prover = Prover::new(session.proof_key.clone(), self.issuer_nonce.clone());
        let targets: Vec<_> = resource.into_iter().map(|resource| ("resource", resource)).collect();
        match (&session.machine, &session.refresh_token) {
            (Some(machine), _) => {
                let (client_id, endpoint) = (&session.client_id, &session.token_endpoint);
                let asked = Asked { machine, client_id, endpoint, scopes: &session.scopes, targets };
                asked.grant(&self.http, &prover).await
            }
            (None, Some(refresh)) => refreshed(&self.http, session, refresh, targets, &prover).await,
            (None, None) => Err(IssuerError::Nonsense("there is nothing to renew it with".to_owned())),
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

async fn refreshed(
    http: &HttpClient,
    session: &Session,
    refresh: &Token,
    targets: Vec<(&'static str, String)>,
    prover: &Prover,
) -> Result<Granted, IssuerError> {
    let client = BasicClient::new(ClientId::new(session.client_id.clone()))
        .set_token_uri(TokenUrl::from_url(session.token_endpoint.clone()));
    let refresh = RefreshToken::new(refresh.0.expose().to_owned());
    let mut request = client.exchange_refresh_token(&refresh);
    for (name, value) in targets {
        request = request.add_extra_param(name, value);
    }
    let answer = request.request_async(&issuer::sender(http, prover)).await?;
    Granted::new(&answer, prover)
}

#[cfg(test)]
mod tests;
