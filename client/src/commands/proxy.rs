//! `proxy`: serves all services by their names, to programs that speak SOCKS5, until interrupted or until the session is over.
//! JSON: one line once it listens, [`Proxying`].

use std::net::SocketAddr;
use std::sync::Arc;

use postern_base::console::count;
use schemars::JsonSchema;
use serde::Serialize;

use super::forward::{means, serve};
use super::{Context, interruptible};
use crate::cli;
use crate::failure::{Exit, Failure};
use crate::forward::board::Served;
use crate::forward::guard::Guests;
use crate::forward::names::Names;
use crate::forward::{Entrance, Forward, Serves};
use crate::output::Output;

/// `proxy --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Proxying {
    #[schemars(with = "String")]
    socks5: SocketAddr,
    relay: String,
}

pub(super) async fn run(context: &Context, args: cli::proxy::Proxy, out: &Output) -> Result<u8, Failure> {
    let asked = args.socks5;
    match (asked.ip().is_loopback(), args.share) {
        (false, false) => {
            let message = format!(
                "{} is beyond loopback: whoever reaches it could use your services as you",
                asked.ip()
            );
            return Err(
                Failure::new(Exit::Usage, message).fix("say --share if that is meant, or leave --socks5 out")
            );
        }
        (true, true) => {
            return Err(Failure::new(
                Exit::Usage,
                format!("--share, but {} is loopback: nothing is shared there", asked.ip()),
            )
            .fix("leave --share out, or name an address beyond loopback with --socks5"));
        }
        (true, false) | (false, true) => {}
    }
    let means = means(context, out)?;
    let guests = if args.browser { Guests::Browsers } else { Guests::Programs };
    let names = Arc::new(Names::new(means.clone(), guests));
    let relay = &context.relay;
    let listed =
        interruptible(context.ask(|pass| async move { relay.services(&pass).await })).await?.services;
    let known = listed.len();
    names.learn(listed).await;
    let entrance = Entrance::tcp(asked).await.map_err(|e| {
        Failure::new(Exit::Other, format!("{asked}: {e}")).fix("choose another address with --socks5")
    })?;
    let address = entrance.address().unwrap_or(asked);
    if out.json {
        out.json(&Proxying { socks5: address, relay: relay.url.origin() });
    } else {
        let services = count(known, "service");
        out.note(&format!("Proxying socks5h://{address} -> {services} at {}   (Ctrl-C stops)", relay.url));
    }
    if args.share {
        out.warn(&format!("shared: whoever reaches {address} uses your services as you"));
    }
    let served = Served { place: format!("socks5h://{address}"), service: None };
    let posted = if args.program.client.client_credentials { Vec::new() } else { vec![served] };
    let forward = Forward { serves: Serves::Names(names), entrance, once: false };
    serve(context, &means, std::iter::once(forward), posted, None).await
}
