//! Takes the parsed command line; runs the one command it names, each in its own file. Gives the exit code, or the failure to be told.

mod can;
mod completion;
mod connect;
mod context;
mod curl;
mod doctor;
mod documents;
mod forward;
mod login;
mod logout;
mod ls;
mod profile;
mod program;
mod proxy;
mod show;
mod status;
mod token;
mod whoami;

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::cli::login::Program;
use crate::cli::{Cli, Command};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::settings::Settings;
pub(crate) use context::Context;
pub use documents::documents;

/// How long the end of the process waits for a renewal: an exchange (5 s at most) and the writing of a file.
const LEAVE: Duration = Duration::from_secs(10);

/// What a newcomer sees who types `postern` alone.
const FIRST: &str = "postern: reach internal services through a Postern relay

  postern login relay.example.com    log in, in the browser
  postern ls                         see what you may reach
  postern forward 8080:billing       use billing on http://127.0.0.1:8080

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
    let context = || Context::new(settings()?, renewals, out);
    match command {
        Command::Login(args) => interruptible(Box::pin(login::run(&settings()?, args, renewals, out))).await,
        Command::Logout { all } => interruptible(logout::run(&settings()?, all, out)).await,
        Command::Whoami => interruptible(whoami::run(&context()?, out)).await,
        Command::Profile(args) => interruptible(profile::run(&settings()?, args, out)).await,
        Command::Ls(args) => interruptible(ls::run(&context()?, &args, out)).await,
        Command::Show(args) => interruptible(show::run(&context()?, &args.service, out)).await,
        Command::Can(args) => interruptible(can::run(&context()?, args, out)).await,
        // It may run a program that has the terminal, and its interrupts, for itself.
        Command::Forward(args) => {
            forward::run(&acting(settings()?, &args.program, renewals, out).await?, args, out).await
        }
        Command::Proxy(args) => {
            proxy::run(&acting(settings()?, &args.program, renewals, out).await?, args, out).await
        }
        Command::Connect { service } => {
            interruptible(Box::pin(connect::run(&context()?, &service, out))).await
        }
        Command::Curl { args } => interruptible(Box::pin(curl::run(&context()?, args, out))).await,
        Command::Token(args) => interruptible(token::run(&context()?, &args, out)).await,
        Command::Status(args) => interruptible(Box::pin(status::run(&context()?, args.watch, out))).await,
        Command::Doctor(args) => interruptible(Box::pin(doctor::run(&context()?, args, out))).await,
        Command::Completion { shell } => Ok(completion::completion(shell, out)),
        Command::Man => completion::man(out),
        Command::Version => Ok(completion::version(out)),
    }
}

/// As a program where that is asked for, else as whoever is logged in.
async fn acting(
    settings: Settings,
    program: &Program,
    renewals: &TaskTracker,
    out: &Output,
) -> Result<Context, Failure> {
    if program.client.client_credentials {
        interruptible(Box::pin(program::context(settings, program, renewals, out))).await
    } else {
        Context::new(settings, renewals, out)
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

#[cfg(test)]
mod tests;
