//! Takes the parsed command line; runs the one command it names, each in its own file. Gives the exit code, or the failure to be told.

mod can;
mod completion;
mod connect;
mod curl;
mod forward;
mod login;
mod logout;
mod ls;
mod program;
mod token;
mod whoami;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use postern_base::http_client::HttpClient;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::cli::{Cli, Command};
use crate::failure::{Exit, Failure};
use crate::lease::Leases;
use crate::output::Output;
use crate::relay_api::address::RelayUrl;
use crate::relay_api::{Relay, RelayError};
use crate::session::Session;
use crate::session::pass::Pass;
use crate::session::refresh::{Tokens, settle};
use crate::session::vault::Vault;
use crate::settings::Settings;

/// What a newcomer sees who types `postern` alone.
const FIRST: &str = "postern: reach internal services through a Postern relay

  postern login relay.example.com    log in, in the browser
  postern ls                         see what you may reach
  postern forward 8080:billing       use the service billing on http://127.0.0.1:8080

All commands: postern --help";

pub(crate) async fn run(cli: Cli, out: &Output) -> Result<u8, Failure> {
    let renewals = TaskTracker::new();
    let result = one(cli, out, &renewals).await;
    settle(&renewals).await;
    result
}

async fn one(cli: Cli, out: &Output, renewals: &TaskTracker) -> Result<u8, Failure> {
    let Some(command) = cli.command else {
        out.data(FIRST);
        return Ok(0);
    };
    let settings = || Settings::new(&cli.globals, |name| std::env::var(name).ok());
    let context = || Context::new(settings()?, renewals);
    match command {
        Command::Login(args) => interruptible(Box::pin(login::run(&settings()?, args, renewals, out))).await,
        Command::Logout { all } => interruptible(logout::run(&settings()?, all, out)).await,
        Command::Whoami => interruptible(whoami::run(&context()?, out)).await,
        Command::Ls { pattern, wide } => {
            interruptible(ls::run(&context()?, pattern.as_deref(), wide, out)).await
        }
        Command::Can { method, target } => interruptible(can::run(&context()?, &method, &target, out)).await,
        // It may run a program that has the terminal, and its interrupts, for itself.
        Command::Forward(args) => {
            let context = if args.program.client.client_credentials {
                let program = program::context(settings()?, &args.program, renewals, out);
                interruptible(Box::pin(program)).await?
            } else {
                context()?
            };
            forward::run(&context, args, out).await
        }
        Command::Connect { service } => {
            interruptible(Box::pin(connect::run(&context()?, &service, out))).await
        }
        Command::Curl { args } => interruptible(Box::pin(curl::run(&context()?, args, out))).await,
        Command::Token { service, header, min_ttl } => {
            let min_ttl = min_ttl.map_or(Duration::ZERO, |span| span.0);
            let wanted = token::Wanted { service: service.as_deref(), header, min_ttl };
            interruptible(token::run(&context()?, &wanted, out)).await
        }
        Command::Completion { shell } => Ok(completion::completion(shell, out)),
        Command::Man => completion::man(out),
        Command::Version => Ok(completion::version(out)),
    }
}

/// Ends with 130 on an interrupt or when told to end. The command is dropped, so that what it made for its own use goes too.
async fn interruptible<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let failed = |e: std::io::Error| Failure::new(Exit::Other, e.to_string());
    let mut interrupts = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminations = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        result = command => result,
        _ = interrupts.recv() => Err(Failure::interrupted()),
        _ = terminations.recv() => Err(Failure::interrupted()),
    }
}

/// What every command needs that acts as somebody: the relay and its tokens.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) relay: Relay,
    pub(crate) tokens: Arc<Tokens>,
}

impl Context {
    pub(crate) fn new(settings: Settings, renewals: &TaskTracker) -> Result<Self, Failure> {
        let http = settings.http()?;
        let vault = Vault::new(&settings);
        Self::over(settings, vault, http, renewals.clone())
    }

    fn over(
        settings: Settings,
        vault: Vault,
        http: HttpClient,
        renewals: TaskTracker,
    ) -> Result<Self, Failure> {
        let url = which_relay(&settings, &vault)?;
        let tokens =
            Arc::new(Tokens::new(url.clone(), settings.token.clone(), vault, http.clone(), renewals));
        Ok(Self { settings, relay: Relay::new(url, http), tokens })
    }

    /// As a program: a session of this process alone.
    fn of(settings: Settings, session: Session, renewals: &TaskTracker) -> Result<Self, Failure> {
        let http = settings.http()?;
        let relay = Relay::new(session.relay.clone(), http.clone());
        let tokens = Arc::new(Tokens::in_memory(session, http, renewals.clone()));
        Ok(Self { settings, relay, tokens })
    }

    /// Asks the relay with the session's token; once more with a new one when the relay refuses a token that has lived a while.
    pub(crate) async fn ask<T, F>(&self, call: impl Fn(Pass) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, RelayError>>,
    {
        self.tokens.shown(None, Duration::ZERO, call).await
    }

    /// The live streams of a command.
    fn leases(&self, out: &Output) -> Arc<Leases> {
        Arc::new(Leases::new(self.relay.clone(), self.tokens.clone(), out.clone()))
    }
}

/// The relay that was named, or the one last logged in to.
fn which_relay(settings: &Settings, vault: &Vault) -> Result<RelayUrl, Failure> {
    settings.relay.clone().or_else(|| vault.current()).ok_or_else(|| {
        Failure::new(Exit::LoginNeeded, "not logged in to any relay").fix("run: postern login RELAY")
    })
}

#[cfg(test)]
mod tests;
