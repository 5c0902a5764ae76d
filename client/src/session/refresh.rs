//! Takes an audience; gives an access token that lives long enough: the one at hand, the one another process has just got, or a new one
//! by the refresh token or, for a program, by asking again. One renewal at a time, among tasks and among processes; one that was begun is seen to its end, whoever stops waiting
//! for it, and what the issuer gave is kept before it is used. One that failed is not tried again for a while.

mod ask;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postern_base::http_client::HttpClient;
use postern_base::secret::Secret;
use postern_base::sync::lock;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::lock::Lock;
use super::pass::{Nonce, Pass};
use super::profile::Account;
use super::vault::Vault;
use super::{Access, Session, SessionError, now};
use crate::issuer::{IssuerError, Prover};
use crate::relay_api::RelayError;
use ask::ask;

/// A token that the relay refused is renewed once it is this old: were a new one refused too, asking on would help nobody.
const DOUBT_AFTER: u64 = 30;
/// How long a failed renewal is not tried again: every request would wait for an issuer that is silent. Less while a token is still good
/// that ends sooner.
const REST: Duration = Duration::from_secs(5);
/// Why a session is over whose refresh token the issuer refused; said again whenever it is used.
const ENDED: &str = "the issuer ended it";

/// The access tokens of one account; clones share them.
#[derive(Clone)]
pub(crate) struct Tokens {
    account: Account,
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
    /// `renewals` holds the renewals that are under way: the process does not end before them.
    pub(crate) fn new(
        account: Account,
        fixed: Option<Secret>,
        vault: Vault,
        http: HttpClient,
        renewals: TaskTracker,
    ) -> Self {
        let known = Known::default();
        Self { fixed, ..Self::over(account, Some(vault), known, http, renewals) }
    }

    /// Of a session that is kept nowhere.
    pub(crate) fn in_memory(session: Session, http: HttpClient, renewals: TaskTracker) -> Self {
        let account = Account::of(session.relay.clone());
        let known = Known { session: Some(session), ..Known::default() };
        Self::over(account, None, known, http, renewals)
    }

    fn over(
        account: Account,
        vault: Option<Vault>,
        known: Known,
        http: HttpClient,
        renewals: TaskTracker,
    ) -> Self {
        Self {
            account,
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

    /// Whether the session goes on when its tokens end, as far as it was read.
    pub(crate) fn renews(&self) -> bool {
        self.known().session.as_ref().is_some_and(Session::renews)
    }

    /// When the last token ends of a session that nothing renews, in seconds since the epoch.
    pub(crate) fn end(&self) -> Option<u64> {
        let known = self.known();
        let session = known.session.as_ref().filter(|session| !session.renews())?;
        session.access.values().map(|access| access.expires).max()
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
                // Sessions are written whole, so a good token is found without the right to change anything.
                self.remember(self.load(vault).await?);
                if let Some(found) = self.at_hand(audience, min_ttl) {
                    return found;
                }
                let lock = vault.lock(&self.account.profile).await;
                // Another process may have renewed it meanwhile.
                let session = self.load(vault).await?;
                self.remember(session.clone());
                if let Some(found) = self.at_hand(audience, min_ttl) {
                    return found;
                }
                match lock {
                    Ok(lock) => (session, Some(lock)),
                    Err(error) => return self.at_least(&session, audience).ok_or_else(|| error.into()),
                }
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
            |_| SessionError::Renewal { relay: self.account.relay.clone(), reason: "it failed badly".into() };
        renewal.await.map_err(failed)?
    }

    /// The session as it is kept.
    async fn load(&self, vault: &Vault) -> Result<Session, SessionError> {
        let Account { profile, relay } = self.account.clone();
        let session = vault.with(move |vault| vault.load(&profile)).await?;
        // The profile may have become another relay's meanwhile, whose tokens are not for this one.
        let session = session.filter(|session| session.relay == relay);
        session.ok_or_else(|| self.none())
    }

    fn none(&self) -> SessionError {
        SessionError::None(self.account.clone())
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
        lock(&self.known)
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

    /// The token at hand, while it is still good.
    fn at_least(&self, session: &Session, audience: Option<&str>) -> Option<Pass> {
        let access = session.access.get(session.audience_key(audience));
        access.filter(|access| access.expires > now()).map(|access| self.as_pass(session, access))
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
            (None, _) => Err(SessionError::Renewal { relay: self.account.relay.clone(), reason }),
        }
    }

    /// Somebody logged in anew: what was known of the session before counts no more.
    pub(crate) fn forget(&self) {
        *self.known() = Known::default();
    }

    fn remember(&self, session: Session) {
        self.known().session = Some(session);
    }

    /// In memory first: should the vault fail, this process at least does not use the old token again.
    async fn keep(&self, session: Session, lock: Option<Lock>) -> Result<(), SessionError> {
        self.remember(session.clone());
        if let (Some(vault), Some(lock)) = (&self.vault, lock) {
            vault.save_locked(&self.account.profile, session, lock).await?;
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
        let at_least = self.at_least(&session, audience);
        let over =
            |reason: &str| SessionError::Over { account: self.account.clone(), reason: reason.to_owned() };
        if !session.renews() {
            let nothing = "it ended, and the issuer gave nothing to renew it with";
            return at_least.ok_or_else(|| over(if session.ended { ENDED } else { nothing }));
        }
        // The issuer may take the old refresh token back the moment that it gives a new one, which must have a place by then.
        let room = match &self.vault {
            Some(vault) => {
                let profile = self.account.profile.clone();
                match vault.with(move |vault| vault.room(&profile)).await {
                    Ok(room) => Some(room),
                    Err(error) => return at_least.ok_or_else(|| error.into()),
                }
            }
            None => None,
        };
        let resource = if key.is_empty() { session.resource.clone() } else { Some(key.clone()) };
        let prover = Prover::new(session.proof_key.clone(), self.issuer_nonce.clone());
        match ask(&self.http, &session, resource, &prover).await {
            Ok(granted) => {
                let access = granted.access(now());
                let pass = self.as_pass(&session, &access);
                session.access.retain(|_, old| old.expires > now());
                session.access.insert(key, access);
                if let Some(rotated) = granted.refresh_token.filter(|_| session.machine.is_none()) {
                    session.refresh_token = Some(rotated);
                }
                drop(room);
                self.keep(session, lock).await?;
                Ok(pass)
            }
            Err(IssuerError::Refused { code, .. })
                if code == "invalid_grant" && session.machine.is_none() =>
            {
                session.refresh_token = None;
                session.ended = true;
                drop(room);
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
}

#[cfg(test)]
mod tests;
