//! Takes an audience; gives an access token that lives long enough: the one at hand, the one another process has just got, or a new one
//! by the refresh token. One renewal at a time, among tasks and among processes; what the issuer gave is kept before it is used.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use oauth2::basic::BasicClient;
use oauth2::{ClientId, RefreshToken, TokenUrl};
use postern_base::http_client::HttpClient;
use postern_base::secret::Secret;
use tokio::sync::Semaphore;

use super::vault::Vault;
use super::{Access, Session, SessionError, Token, now};
use crate::issuer::{self, Granted, IssuerError};
use crate::relay_api::address::RelayUrl;

/// A token that the relay refused is renewed once it is this old: were a new one refused too, asking on would help nobody.
const DOUBT_AFTER: u64 = 30;

/// The access tokens for one relay.
pub(crate) struct Tokens {
    relay: RelayUrl,
    /// `POSTERN_TOKEN`: used as it is, no session is touched.
    fixed: Option<Secret>,
    vault: Vault,
    http: HttpClient,
    flight: Semaphore,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    session: Option<Session>,
    doubted: Option<Secret>,
}

impl Tokens {
    pub(crate) fn new(relay: RelayUrl, fixed: Option<Secret>, vault: Vault, http: HttpClient) -> Self {
        Self { relay, fixed, vault, http, flight: Semaphore::new(1), known: Mutex::default() }
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
            return Ok(found);
        }
        // The semaphore is never closed.
        let _flight = self.flight.acquire().await;
        if let Some(found) = self.at_hand(audience, min_ttl) {
            return Ok(found);
        }
        let _lock = self.vault.lock(&self.relay).await?;
        let relay = self.relay.clone();
        let session = self.vault.with(move |vault| vault.load(&relay)).await?;
        let session = session.ok_or_else(|| SessionError::None(self.relay.clone()))?;
        self.remember(session.clone());
        match self.at_hand(audience, min_ttl) {
            Some(found) => Ok(found),
            None => self.renew(session, audience).await,
        }
    }

    /// The relay refused this token: the next call renews it, unless it is new.
    pub(crate) fn doubt(&self, access: &Access) {
        if access.issued.saturating_add(DOUBT_AFTER) < now() {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).doubted = Some(access.token.0.clone());
        }
    }

    fn at_hand(&self, audience: Option<&str>, min_ttl: Duration) -> Option<Access> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let session = known.session.as_ref()?;
        let found = session.access.get(session.audience_key(audience))?;
        let doubted = known.doubted.as_ref().is_some_and(|d| d.expose() == found.token.0.expose());
        (found.is_fresh(now(), min_ttl) && !doubted).then(|| found.clone())
    }

    fn remember(&self, session: Session) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).session = Some(session);
    }

    /// Called under the lock, with the session as the vault has it.
    async fn renew(&self, mut session: Session, audience: Option<&str>) -> Result<Access, SessionError> {
        let key = session.audience_key(audience).to_owned();
        let at_least = session.access.get(&key).filter(|access| access.expires > now()).cloned();
        let over = |reason: String| SessionError::Over { relay: self.relay.clone(), reason };
        let Some(refresh) = session.refresh_token.clone() else {
            return at_least
                .ok_or_else(|| over("it ended, and the issuer gave nothing to renew it with".into()));
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
                // In memory first: should the vault fail, this process at least does not use the old token again.
                self.remember(session.clone());
                self.vault.with(move |vault| vault.save(&session)).await?;
                Ok(access)
            }
            Err(IssuerError::Refused { code, .. }) if code == "invalid_grant" => {
                session.refresh_token = None;
                self.remember(session.clone());
                self.vault.with(move |vault| vault.save(&session)).await?;
                at_least.ok_or_else(|| over("the issuer ended it".into()))
            }
            Err(error) => match at_least {
                Some(access) => {
                    tracing::info!(%error, "not renewed; the token at hand is still good");
                    Ok(access)
                }
                None if !key.is_empty() && matches!(error, IssuerError::Refused { .. }) => {
                    Err(SessionError::Audience {
                        issuer: session.issuer,
                        audience: key,
                        reason: error.to_string(),
                    })
                }
                None => Err(SessionError::Renewal { relay: self.relay.clone(), reason: error.to_string() }),
            },
        }
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
