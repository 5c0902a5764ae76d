//! Looks after the upstreams: checks each address that its service wants checked, tells the balance what it found, and publishes what this
//! agent offers: a service whose addresses all fail is offered as unhealthy until one of them works again. Shared by all workers.

use std::sync::Arc;

use futures_util::future::join_all;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, header};
use postern_wire::control::{ServiceKind, ServiceOffer};
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::task::TaskTracker;

use super::http::{broken, target};
use super::pool::{self, Lease};
use super::{CallError, Upstream, UpstreamError};
use crate::request::body::UpstreamBody;
use crate::settings::Settings;
use crate::settings::service::{Address, HealthCheck, Protocol};

/// Upstreams tried at once because somebody asked: a relay must not make a flood of it.
const PROBES: usize = 8;

#[derive(Debug)]
pub struct Health {
    upstreams: Vec<Arc<Upstream>>,
    offers: watch::Sender<Arc<Vec<ServiceOffer>>>,
    /// Those of connections that a check opened.
    tasks: TaskTracker,
    pub(super) probes: Semaphore,
}

impl Health {
    /// # Errors
    /// A file or a secret that an upstream needs cannot be had.
    pub fn new(settings: &Settings) -> Result<Self, UpstreamError> {
        let upstreams = settings.services.values().map(|service| Upstream::new(service).map(Arc::new));
        let upstreams: Vec<_> = upstreams.collect::<Result<_, _>>()?;
        let offers = watch::Sender::new(Arc::new(offered(&upstreams)));
        Ok(Self { upstreams, offers, tasks: TaskTracker::new(), probes: Semaphore::new(PROBES) })
    }

    /// In the order of their names.
    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    /// What is to be offered to relays, now and whenever it changes.
    pub fn offers(&self) -> watch::Receiver<Arc<Vec<ServiceOffer>>> {
        self.offers.subscribe()
    }

    /// Checks until it is dropped; ends at once where nothing is to be checked.
    pub async fn watch(&self) {
        let checks = self.upstreams.iter().flat_map(|upstream| {
            let check = upstream.service.health.iter();
            check.flat_map(move |check| {
                let members = 0..upstream.service.addresses.len();
                members.map(move |member| self.look_after(upstream, check, member))
            })
        });
        join_all(checks).await;
    }

    async fn look_after(&self, upstream: &Upstream, check: &HealthCheck, member: usize) {
        let mut turns = tokio::time::interval(check.every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0u32;
        loop {
            turns.tick().await;
            let found = self.look(upstream, member).await;
            if let Err(error) = &found {
                upstream.failed(error);
            }
            failures = if found.is_ok() { 0 } else { failures.saturating_add(1) };
            let is_news = match &found {
                Ok(()) => upstream.balance.set_down(member, false),
                Err(_) => failures >= check.unhealthy_after && upstream.balance.set_down(member, true),
            };
            if found.is_ok() {
                upstream.answered();
            }
            if is_news {
                let (service, address) = (&upstream.service.name, upstream.address(member));
                match &found {
                    Ok(()) => tracing::info!(%service, %address, "an upstream is healthy again"),
                    Err(reason) => tracing::warn!(%service, %address, %reason, "an upstream is unhealthy"),
                }
                let offers = offered(&self.upstreams);
                self.offers.send_if_modified(|known| {
                    let is_new = **known != offers;
                    *known = Arc::new(offers);
                    is_new
                });
            }
        }
    }

    /// One check, over a connection of its own: an old one would not show that new ones fail. Where no path is to be asked for, a
    /// connection is enough.
    pub(super) async fn look(&self, upstream: &Upstream, member: usize) -> Result<(), CallError> {
        let path: Option<&PathAndQuery> =
            upstream.service.health.as_ref().and_then(|check| check.path.as_ref());
        let Some(path) = path else {
            return upstream.connector.connect(upstream.address(member)).await.map(drop);
        };
        let lease = pool::open(upstream, member, &self.tasks).await?;
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static("postern-agent"));
        upstream.credentials.apply(&mut headers);
        let service = &upstream.service;
        let host = service.host.clone().or_else(|| host_of(upstream.address(member)));
        let host = host.unwrap_or_else(|| HeaderValue::from_static("localhost"));
        let uri = target(service, host, path.clone(), &mut headers);
        let mut request = Request::new(UpstreamBody::empty());
        *request.uri_mut() = uri.map_err(|e| CallError::Answer(e.to_string()))?;
        *request.headers_mut() = headers;
        let limit = service.limit.first_byte;
        let exchange = async {
            match lease {
                Lease::Own(mut own) => own.exchange(request).await,
                Lease::Shared(mut sender, _stream) => {
                    sender.send_request(request).await.map_err(|e| broken(&e))
                }
            }
        };
        let answer = tokio::time::timeout(limit, exchange).await.map_err(|_| CallError::Silent(limit))??;
        match answer.status() {
            status if status.is_success() || status.is_redirection() => Ok(()),
            status => Err(CallError::Answer(format!("status {} to the health check", status.as_u16()))),
        }
    }
}

fn host_of(address: &Address) -> Option<HeaderValue> {
    match address {
        Address::Port { .. } => HeaderValue::from_str(&address.to_string()).ok(),
        Address::Unix(_) => None,
    }
}

fn offered(upstreams: &[Arc<Upstream>]) -> Vec<ServiceOffer> {
    let offer = |upstream: &Arc<Upstream>| ServiceOffer {
        name: upstream.service.name.to_string(),
        kind: match upstream.service.protocol {
            Protocol::Tcp => ServiceKind::Tcp,
            Protocol::Http1 | Protocol::Http2 => ServiceKind::Http,
        },
        healthy: upstream.balance.is_healthy(),
        wants_caller_token: upstream.service.verifies,
    };
    upstreams.iter().map(offer).collect()
}
