//! One connection to a TCP service: connects, says so, and then passes bytes both ways until both sides have ended. It may idle as long
//! as TCP's keepalive finds the upstream alive.

use postern_wire::codec::HEAD_LIMIT;
use postern_wire::head::{ResponseHead, failure};
use postern_wire::link::{RecvStream, SendStream};
use postern_wire::pipe::{Counts, pipe};

use super::failed::Failure;
use crate::settings::service::Protocol;
use crate::supervisor::Agent;
use crate::upstream::Route;
use crate::upstream::balance::Place;

pub(super) async fn serve(
    agent: &Agent,
    route: &Route,
    receiver: RecvStream,
    sender: &mut SendStream,
) -> Result<(), Failure> {
    let service = &route.upstream.service;
    if service.protocol != Protocol::Tcp {
        let name = &service.name;
        let detail =
            format!("service {name} is HTTP at the agent: write tcp:// for its upstream in agent.toml");
        return Err(Failure::agent(failure::NOT_SUPPORTED, detail));
    }
    let failed = |e| Failure::of(agent, route, &e);
    let mut place = Place::take(&route.upstream).map_err(failed)?;
    let (stream, _) = route.open(&mut place).await.map_err(failed)?;
    // Whoever is gone already has reset the stream, which ends this task.
    if sender.message(&ResponseHead::Opened, HEAD_LIMIT).await.is_ok() {
        let counts = Counts::default();
        let ended = pipe(stream, sender, receiver, None, &counts).await;
        tracing::debug!(service = %service.name, ?ended, ?counts, "a TCP connection ended");
    }
    Ok(())
}
