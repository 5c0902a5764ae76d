//! `forward`: serves services on local ports (or a unix socket) until interrupted, until the first request's connection is closed
//! (`--once`), until a program that it runs ends, or until the session is over.
//! JSON: a line per service once it listens, [`Announced`].

mod child;
mod listed;

use std::sync::Arc;
use std::time::Duration;

use postern_base::http_client::HttpClientError;
use postern_base::id::ServiceName;
use rustix::process::{Resource, getrlimit, setrlimit};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::{Context, interruptible};
use crate::cli;
use crate::dial::Dial;
use crate::failure::{Exit, Failure};
use crate::forward::board::{self, Served};
use crate::forward::means::Means;
use crate::forward::spec::{Spec, SpecError};
use crate::forward::told::Told;
use crate::forward::{CONNECTIONS, Entrance, Forward, Serves};
use crate::output::Output;
pub(super) use child::code;
use child::{Place, see_through, start};
pub(super) use listed::{listed, public};

/// For the answer that says why there will be no more.
const FAREWELL: Duration = Duration::from_millis(200);

pub(super) async fn run(context: &Context, args: cli::forward::Forward, out: &Output) -> Result<u8, Failure> {
    if args.unix.is_some()
        && (args.specs.len() > 1 || args.specs.iter().any(|s| s.port != 0 || s.bind.is_some()))
    {
        return Err(Failure::new(Exit::Usage, "--unix takes one service, without a port"));
    }
    let means = means(context, out)?;
    let ready = interruptible(prepare(context, &means, &args)).await?;
    let mut posted = Vec::new();
    let mut places = Vec::new();
    for one in &ready {
        announce(one, &args, out);
        // A program that logs in for itself leaves nothing here.
        if !args.program.client.client_credentials {
            posted.push(Served { place: one.place(&args), service: Some(one.service.to_string()) });
        }
        let address = one.forward.entrance.address();
        places.extend(address.map(|address| Place {
            service: one.service.to_string(),
            port: address.port(),
            url: one.local.clone(),
        }));
    }
    let child = if args.command.is_empty() { None } else { Some(start(&args.command, &places)?) };
    serve(context, &means, ready.into_iter().map(|one| one.forward), posted, child).await
}

/// Serves until told to stop, or until a forward or the program that is run ends; renews, watches and tells meanwhile.
pub(super) async fn serve(
    context: &Context,
    means: &Means,
    forwards: impl Iterator<Item = Forward>,
    posted: Vec<Served>,
    child: Option<Child>,
) -> Result<u8, Failure> {
    let notice = (!posted.is_empty()).then(|| board::post(&context.settings.dir, &means.relay, posted));
    let _notice = notice
        .map(|notice| notice.inspect_err(|error| tracing::info!(%error, "not shown by postern status")));
    let mut serving: JoinSet<()> = forwards.map(Forward::serve).collect();
    let is_alone = child.is_none();
    let served = async {
        // With --once the first forward that has served its request ends them all.
        let _ = serving.join_next().await;
        Ok(0)
    };
    let work = async {
        match child {
            Some(child) => see_through(child).await,
            None => until_stopped(served).await,
        }
    };
    let over = async {
        let told = Told::new(means.out.clone());
        loop {
            let failure = means.link.ended().await;
            if !is_alone {
                // The program has the terminal, and the last word.
                told.failure(&failure);
                continue;
            }
            tokio::time::sleep(FAREWELL).await;
            if let Err(failure) = context.log_in_again(failure).await {
                return failure;
            }
        }
    };
    tokio::select! {
        // First what is over: a program that ends for it must not end before it is told why.
        biased;
        failure = over => Err(failure),
        result = work => result,
        never = means.link.watch(means) => match never {},
        never = means.leases.keep() => match never {},
    }
}

/// A forward that is bound, and how it is called.
struct Ready {
    forward: Forward,
    service: ServiceName,
    local: String,
}

impl Ready {
    /// As it is shown: programs that speak TCP want host and port, not a URL.
    fn place(&self, args: &cli::forward::Forward) -> String {
        match &args.unix {
            Some(path) => path.display().to_string(),
            None => self.local.trim_start_matches("tcp://").to_owned(),
        }
    }
}

/// Binds every port before anything is said or served.
async fn prepare(
    context: &Context,
    means: &Means,
    args: &cli::forward::Forward,
) -> Result<Vec<Ready>, Failure> {
    let relay = &context.relay;
    let catalogue = context.ask(|pass| async move { relay.services(&pass).await }).await?;
    let mut ready = Vec::new();
    for spec in &args.specs {
        let found = listed(context, &catalogue, &spec.service).await?;
        let is_tcp = found.kind.raw() == "tcp";
        let called = if is_tcp { None } else { Some(public(context, found)?) };
        let entrance = entrance(spec, args).await?;
        let service = found.name.clone();
        let local = local(&entrance, &service, is_tcp);
        let serves = match called {
            Some((url, audience)) => Serves::Http {
                service: Arc::new(means.http(service.clone(), url, audience)),
                local: local.as_str().into(),
            },
            None => Serves::Tcp(Arc::new(means.tcp(service.clone(), found.resource.clone()))),
        };
        ready.push(Ready { forward: Forward { serves, entrance, once: args.once }, service, local });
    }
    Ok(ready)
}

/// What is needed to forward anything.
pub(super) fn means(context: &Context, out: &Output) -> Result<Means, Failure> {
    make_room();
    let (relay, tokens) = (context.relay.url.clone(), context.tokens.clone());
    Ok(Means::new(relay, dial(context)?, tokens, context.leases(out), out.clone()))
}

/// Connections to the relay.
pub(super) fn dial(context: &Context) -> Result<Dial, Failure> {
    let settings = &context.settings;
    Dial::new(&context.relay.url, settings.proxy.clone(), settings.roots.as_deref())
        .map_err(|error: HttpClientError| Failure::new(Exit::Config, error.to_string()))
}

/// Each connection takes one or two file descriptors, and most shells allow 1,024 unless asked for more.
fn make_room() {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = 2 * CONNECTIONS as u64 + 256;
    if let Some(current) = limit.current.filter(|current| *current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |maximum| wanted.min(maximum)).max(current));
        // Without it fewer connections are accepted at once, and that is logged.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

async fn entrance(spec: &Spec, args: &cli::forward::Forward) -> Result<Entrance, Failure> {
    if let Some(path) = &args.unix {
        return Entrance::unix(path).await.map_err(|e| {
            Failure::new(Exit::Other, format!("{}: {e}", path.display()))
                .fix("choose another path for --unix")
        });
    }
    let address = spec.address(args.bind, args.share).map_err(|error| {
        let fix = match error {
            SpecError::Beyond(_) => "say --share if that is meant, or leave the address out",
            SpecError::NotShared(_) => "leave --share out, or name an address beyond loopback with --bind",
            SpecError::Form(_) | SpecError::Port(_) => "write SERVICE, PORT:SERVICE or BIND:PORT:SERVICE",
        };
        Failure::new(Exit::Usage, error.to_string()).fix(fix)
    })?;
    Entrance::tcp(address).await.map_err(|e| {
        Failure::new(Exit::Other, format!("{address}: {e}"))
            .fix("choose another port, or none for any free one")
    })
}

fn local(entrance: &Entrance, service: &ServiceName, is_tcp: bool) -> String {
    let scheme = if is_tcp { "tcp" } else { "http" };
    match entrance.address() {
        Some(address) => format!("{scheme}://{address}"),
        None => format!("{scheme}://{service}"),
    }
}

/// `forward --json`: one for each that is ready.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Announced<'a> {
    /// A TCP service's URL is `tcp://127.0.0.1:PORT`.
    Port {
        url: &'a str,
        service: &'a ServiceName,
        port: u16,
    },
    Socket {
        unix: &'a str,
        service: &'a ServiceName,
    },
}

fn announce(one: &Ready, args: &cli::forward::Forward, out: &Output) {
    let Ready { forward, service, local } = one;
    let place = one.place(args);
    if out.json {
        out.json(&match forward.entrance.address() {
            Some(address) => Announced::Port { url: local, service, port: address.port() },
            None => Announced::Socket { unix: &place, service },
        });
    } else {
        out.note(&format!("Forwarding {place} -> {service}   (Ctrl-C stops)"));
    }
    if args.share {
        out.warn(&format!("shared: whoever reaches {local} uses {service} as you"));
    }
}

async fn until_stopped(served: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let failed = |e: std::io::Error| Failure::new(Exit::Other, e.to_string());
    let mut terminations = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        result = served => result,
        _ = terminations.recv() => Ok(0),
        _ = tokio::signal::ctrl_c() => Err(Failure::interrupted()),
    }
}
