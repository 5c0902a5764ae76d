//! What every command needs that acts as somebody: whom it acts as, the relay, and tokens for it. A session that is over leads to the
//! question, on a terminal, whether to log in again; the command then goes on.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use postern_base::http_client::HttpClient;
use tokio_util::task::TaskTracker;

use super::login;
use crate::failure::Failure;
use crate::lease::Leases;
use crate::output::Output;
use crate::relay_api::{Relay, RelayError};
use crate::session::Session;
use crate::session::pass::Pass;
use crate::session::profile::Account;
use crate::session::refresh::Tokens;
use crate::session::vault::Vault;
use crate::settings::Settings;

pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) account: Account,
    pub(crate) relay: Relay,
    pub(crate) tokens: Arc<Tokens>,
    pub(super) vault: Vault,
    out: Output,
}

impl Context {
    pub(crate) fn new(settings: Settings, renewals: &TaskTracker, out: &Output) -> Result<Self, Failure> {
        let http = settings.http()?;
        let vault = Vault::new(&settings);
        Self::over(settings, vault, http, renewals, out)
    }

    pub(super) fn over(
        settings: Settings,
        vault: Vault,
        http: HttpClient,
        renewals: &TaskTracker,
        out: &Output,
    ) -> Result<Self, Failure> {
        let account = vault.account(settings.profile.as_ref(), settings.relay.as_ref())?;
        let (fixed, store) = (settings.token.clone(), vault.clone());
        let tokens = Tokens::new(account.clone(), fixed, store, http.clone(), renewals.clone());
        Ok(Self::with(settings, account, vault, tokens, http, out))
    }

    /// As a program: a session of this process alone.
    pub(super) fn of(
        settings: Settings,
        session: Session,
        renewals: &TaskTracker,
        out: &Output,
    ) -> Result<Self, Failure> {
        let http = settings.http()?;
        let (account, vault) = (Account::of(session.relay.clone()), Vault::new(&settings));
        let tokens = Tokens::in_memory(session, http.clone(), renewals.clone());
        Ok(Self::with(settings, account, vault, tokens, http, out))
    }

    fn with(
        settings: Settings,
        account: Account,
        vault: Vault,
        tokens: Tokens,
        http: HttpClient,
        out: &Output,
    ) -> Self {
        let relay = Relay::new(account.relay.clone(), http);
        let (tokens, out) = (Arc::new(tokens), out.clone());
        Self { settings, account, relay, tokens, vault, out }
    }

    /// Asks the relay with the session's token; once more with a new one when the relay refuses a token that has lived a while, or when
    /// the person at the terminal has logged in again.
    pub(crate) async fn ask<T, F>(&self, call: impl Fn(Pass) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, RelayError>>,
    {
        let asked: Result<T, Failure> = self.tokens.shown(None, Duration::ZERO, &call).await;
        match asked {
            Err(failure) => {
                self.log_in_again(failure).await?;
                self.tokens.shown(None, Duration::ZERO, &call).await
            }
            good => good,
        }
    }

    /// A token, as [`Tokens::pass`] gives it; the person at the terminal may log in again for it.
    pub(crate) async fn pass(&self, audience: Option<&str>, min_ttl: Duration) -> Result<Pass, Failure> {
        match self.tokens.pass(audience, min_ttl).await {
            Err(error) => {
                self.log_in_again(error.into()).await?;
                Ok(self.tokens.pass(audience, min_ttl).await?)
            }
            Ok(pass) => Ok(pass),
        }
    }

    /// Gives the failure back where no login helps, where nobody is there to be asked, and where they say no.
    pub(super) async fn log_in_again(&self, failure: Failure) -> Result<(), Failure> {
        let failure = self.advised(failure);
        let may_help = failure.login_helps && self.settings.token.is_none();
        if !may_help || !self.out.agrees(&failure.message, "Log in again now?").await {
            return Err(failure);
        }
        Box::pin(login::again(&self.settings, &self.account, &self.out)).await?;
        self.tokens.forget();
        Ok(())
    }

    /// Names the login that helps, where one does.
    pub(super) fn advised(&self, failure: Failure) -> Failure {
        match (failure.login_helps, &self.settings.token) {
            (false, _) => failure,
            (true, Some(_)) => failure.fix("give POSTERN_TOKEN a good token, or unset it and log in"),
            (true, None) => failure.fix(format!("run: {}", self.account.login())),
        }
    }

    /// The live streams of a command.
    pub(super) fn leases(&self, out: &Output) -> Arc<Leases> {
        Arc::new(Leases::new(self.relay.clone(), self.tokens.clone(), out.clone()))
    }
}
