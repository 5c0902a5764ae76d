//! `forward`: serves services on local ports (or a unix socket) until interrupted, until the first request's connection is closed
//! (`--once`), or until a program that it runs ends.
//! JSON: a line per service once it listens, `{ url, service, port }`, or `{ unix, service }` for a socket. A TCP service's URL is
//! `tcp://127.0.0.1:PORT`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::Arc;

use postern_base::http_client::HttpClientError;
use postern_base::id::ServiceName;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use url::Url;

use super::{Context, interruptible};
use crate::channel::Opener;
use crate::cli;
use crate::dial::Dial;
use crate::failure::{Exit, Failure};
use crate::forward::http::Service;
use crate::forward::http::upstream::Upstream;
use crate::forward::link::Link;
use crate::forward::location::Map;
use crate::forward::spec::{Spec, SpecError};
use crate::forward::tcp::Tcp;
use crate::forward::{CONNECTIONS, Entrance, Forward, Serves};
use crate::lease::Leases;
use crate::output::Output;
use crate::relay_api::address::{AddressError, Target};
use crate::relay_api::problem::deny_fix;
use crate::relay_api::{self, Catalogue};

pub(super) async fn run(context: &Context, args: cli::Forward, out: &Output) -> Result<u8, Failure> {
    if args.unix.is_some()
        && (args.specs.len() > 1 || args.specs.iter().any(|s| s.port != 0 || s.bind.is_some()))
    {
        return Err(Failure::new(Exit::Usage, "--unix takes one service, without a port"));
    }
    let forwards = interruptible(prepare(context, &args, out)).await?;
    let (link, leases, first) = (forwards.link, forwards.leases, forwards.first);
    let mut serving = JoinSet::new();
    for forward in forwards.all {
        serving.spawn(forward.serve());
    }
    let child = if args.command.is_empty() { None } else { Some(start(&args.command, first.as_ref())?) };
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
    tokio::select! {
        result = work => result,
        never = link.watch(&context.relay, out) => match never {},
        never = leases.keep() => match never {},
    }
}

struct Prepared {
    all: Vec<Forward>,
    link: Arc<Link>,
    leases: Arc<Leases>,
    /// The first one's TCP address and URL, for a program that is run.
    first: Option<(SocketAddr, String)>,
}

/// Binds every port, and says so, before anything is served.
async fn prepare(context: &Context, args: &cli::Forward, out: &Output) -> Result<Prepared, Failure> {
    let relay = &context.relay;
    let catalogue = context.ask(|pass| async move { relay.services(&pass).await }).await?;
    let link = Arc::new(Link::default());
    let leases = context.leases(out);
    make_room();
    let dial = dial(context)?;
    let upstream = Upstream::new(&dial);
    let mut all = Vec::new();
    let mut first = None;
    for spec in &args.specs {
        let found = listed(context, &catalogue, &spec.service).await?;
        let is_tcp = found.kind.raw() == "tcp";
        let called = if is_tcp { None } else { Some(public(context, found)?) };
        let entrance = entrance(spec, args).await?;
        let local = local(&entrance, &spec.service, is_tcp);
        announce(&entrance, &local, spec, args, out);
        if first.is_none() {
            first = entrance.address().map(|address| (address, local.clone()));
        }
        let serves = if let Some((url, audience)) = called {
            let service = Service {
                name: found.name.clone(),
                upstream: upstream.clone(),
                relay: relay.url.clone(),
                map: Map::new(url),
                audience,
                tokens: context.tokens.clone(),
                leases: leases.clone(),
                link: link.clone(),
                refused: None,
            };
            Serves::Http { service: Arc::new(service), local: local.into() }
        } else {
            let opener = opener(context, &found.name, Some(found), dial.clone(), leases.clone());
            Serves::Tcp(Arc::new(Tcp::new(opener, link.clone(), out.clone())))
        };
        all.push(Forward { serves, entrance, once: args.once });
    }
    Ok(Prepared { all, link, leases, first })
}

/// Connections to the relay.
pub(super) fn dial(context: &Context) -> Result<Dial, Failure> {
    let settings = &context.settings;
    Dial::new(&context.relay.url, settings.proxy.clone(), settings.roots.as_deref())
        .map_err(|error: HttpClientError| Failure::new(Exit::Config, error.to_string()))
}

/// A TCP service, ready to be connected to.
pub(super) fn opener(
    context: &Context,
    service: &ServiceName,
    listed: Option<&relay_api::Service>,
    dial: Dial,
    leases: Arc<Leases>,
) -> Opener {
    Opener {
        service: service.clone(),
        relay: context.relay.url.clone(),
        dial,
        audience: listed.and_then(|listed| listed.resource.clone()),
        tokens: context.tokens.clone(),
        leases,
    }
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

/// Where a listed service is called, and its own audience.
pub(super) fn public(
    context: &Context,
    found: &relay_api::Service,
) -> Result<(Url, Option<String>), Failure> {
    let published = found.url.as_deref().ok_or_else(|| {
        Failure::new(Exit::Other, format!("{} has no address of its own: its host is a pattern", found.name))
            .fix("ask whoever runs the relay for a host or a path of its own")
    })?;
    let url = context.relay.url.service_at(&found.name, published).map_err(|error: AddressError| {
        Failure::new(Exit::Config, error.to_string()).fix("ask whoever runs the relay to check its `url`")
    })?;
    Ok((url, found.resource.clone()))
}

/// The catalogue's entry, or why there is none that is of use: no such service, or nothing there that one may do.
async fn listed<'a>(
    context: &Context,
    catalogue: &'a Catalogue,
    name: &ServiceName,
) -> Result<&'a relay_api::Service, Failure> {
    let found = catalogue.services.iter().find(|service| service.name == *name);
    let (method, path) = match found {
        Some(found) => match found.kind.raw() {
            "http" => return Ok(found),
            "tcp" if !found.may.is_empty() => return Ok(found),
            "tcp" => ("CONNECT", ""),
            _ => {
                return Err(Failure::new(Exit::Other, format!("{name} is a {} service", found.kind))
                    .fix("a newer postern may know how to forward it"));
            }
        },
        None => ("GET", "/"),
    };
    let relay = &context.relay;
    let target = Target { service: name.clone(), path: path.into() };
    let root = &target;
    let explained = context.ask(|pass| async move { relay.explain(&pass, method, root).await }).await?;
    let mut failure = Failure::new(Exit::Denied, format!("there is nothing that you may do at {name}"));
    if let Some(closest) = &explained.closest {
        failure = failure.detail(closest.line());
    }
    Err(failure.fix(deny_fix(explained.closest.as_ref(), None)))
}

async fn entrance(spec: &Spec, args: &cli::Forward) -> Result<Entrance, Failure> {
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
            SpecError::Form(_) => "write SERVICE, PORT:SERVICE or BIND:PORT:SERVICE",
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

fn announce(entrance: &Entrance, local: &str, spec: &Spec, args: &cli::Forward, out: &Output) {
    let service = &spec.service;
    let place = args.unix.as_ref().map_or_else(|| local.to_owned(), |path| path.display().to_string());
    if out.json {
        out.json(&match entrance.address() {
            Some(address) => json!({ "url": local, "service": service, "port": address.port() }),
            None => json!({ "unix": place, "service": service }),
        });
    } else {
        // Programs that speak TCP want host and port, not a URL.
        let place = place.trim_start_matches("tcp://");
        out.note(&format!("Forwarding {place} -> {service}   (Ctrl-C stops)"));
    }
    if args.share {
        out.warn(&format!("shared: whoever reaches {local} uses {service} as you"));
    }
}

fn start(command: &[OsString], first: Option<&(SocketAddr, String)>) -> Result<Child, Failure> {
    let Some((program, args)) = command.split_first() else {
        return Err(Failure::new(Exit::Usage, "no program is named behind --"));
    };
    let mut command = Command::new(program);
    command.args(args).kill_on_drop(true);
    if let Some((address, url)) = first {
        command.env("POSTERN_PORT", address.port().to_string()).env("POSTERN_URL", url);
    }
    command.spawn().map_err(|e| {
        Failure::new(Exit::Other, format!("{}: {e}", program.display())).fix("name a program that is in PATH")
    })
}

/// Waits for the program's end. The terminal sends an interrupt to it directly; what is sent to us alone to end is passed on.
async fn see_through(mut child: Child) -> Result<u8, Failure> {
    let failed = |e: std::io::Error| Failure::new(Exit::Other, e.to_string());
    let mut interrupts = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminations = signal(SignalKind::terminate()).map_err(failed)?;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(code(status.map_err(failed)?)),
            _ = interrupts.recv() => {}
            _ = terminations.recv() => {
                let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
                if let Some(pid) = pid {
                    // It may have ended meanwhile.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
            }
        }
    }
}

/// A program's exit code as shells see it: 128 and the signal's number when one ended it.
pub(super) fn code(status: ExitStatus) -> u8 {
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    status.code().or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::Other.code())
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
