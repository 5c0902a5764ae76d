//! The upstreams behind the services: what all workers share of one ([`Upstream`]: addresses, TLS, secrets, health) and each worker's way
//! to all of them ([`Upstreams`], connections kept and reused). Takes finished requests and wishes for connections; goes to no address
//! that is not in our own file.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use postern_base::id::ServiceName;
use postern_base::sync::lock;

use crate::settings::Service;
use crate::settings::service::Address;

pub mod answer;
pub mod balance;
pub mod connect;
pub mod credentials;
pub mod health;
pub mod http;
mod own;
pub mod pool;
pub mod probe;
pub mod resolve;
pub mod tcp;
pub mod tls;

use balance::Balance;
use connect::Connector;
use credentials::Credentials;
use health::Health;
use pool::Pool;

pub use probe::probe;

/// An upstream that the configuration cannot mean.
#[derive(Debug, thiserror::Error)]
#[error("services.{service}.{key}: {reason}")]
pub struct UpstreamError {
    pub service: ServiceName,
    /// Dotted, below the service.
    pub key: String,
    pub reason: String,
}

/// Why an upstream gave no answer. The texts go to the caller and name no address.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("its {0} requests at once (limit.concurrent) are under way: try again, or raise the limit")]
    Busy(usize),
    #[error("connection refused: start the service, or correct its upstream in agent.toml")]
    Refused,
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("its certificate or TLS handshake is not acceptable: {0}")]
    Tls(String),
    #[error("it answered wrongly: {0}")]
    Answer(String),
    /// The connection ended before a byte of the answer had come.
    #[error("it answered wrongly: {0}")]
    Unanswered(String),
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

/// One service's upstream, as all workers share it.
#[derive(Debug)]
pub struct Upstream {
    pub service: Arc<Service>,
    pub balance: Balance,
    pub(crate) connector: Connector,
    pub(crate) credentials: Credentials,
    /// What went wrong last, and when; until it answers again.
    last_error: Mutex<Option<(SystemTime, String)>>,
    /// Whether there is such an error: requests that go well look at this alone.
    has_failed: AtomicBool,
}

impl Upstream {
    fn new(service: &Arc<Service>) -> Result<Self, UpstreamError> {
        Ok(Self {
            service: service.clone(),
            balance: Balance::new(service),
            connector: Connector::new(service)?,
            credentials: Credentials::load(service)?,
            last_error: Mutex::default(),
            has_failed: AtomicBool::new(false),
        })
    }

    /// Remembers why a request or a check failed, for `status`.
    pub(crate) fn failed(&self, error: &CallError) {
        let told = Some((SystemTime::now(), error.to_string()));
        let mut last = lock(&self.last_error);
        *last = told;
        self.has_failed.store(true, Ordering::Relaxed);
    }

    /// It answers: what went wrong before is no cause of anything now, unless one of its addresses is still down.
    pub(crate) fn answered(&self) {
        if self.has_failed.load(Ordering::Relaxed) && self.balance.is_whole() {
            let mut last = lock(&self.last_error);
            *last = None;
            self.has_failed.store(false, Ordering::Relaxed);
        }
    }

    pub fn last_error(&self) -> Option<(SystemTime, String)> {
        lock(&self.last_error).clone()
    }

    fn address(&self, member: usize) -> &Address {
        &self.service.addresses[member]
    }
}

/// One worker's way to one upstream.
#[derive(Debug)]
pub struct Route {
    pub upstream: Arc<Upstream>,
    pub(crate) pool: Arc<Pool>,
}

/// One worker's ways to all upstreams.
#[derive(Debug)]
pub struct Upstreams {
    routes: HashMap<ServiceName, Route>,
}

impl Upstreams {
    pub fn new(health: &Health) -> Self {
        let routes = health.upstreams().iter().map(|upstream| {
            let pool = Arc::new(Pool::new(upstream.service.addresses.len()));
            (upstream.service.name.clone(), Route { upstream: upstream.clone(), pool })
        });
        Self { routes: routes.collect() }
    }

    pub fn route(&self, service: &str) -> Option<&Route> {
        self.routes.get(service)
    }
}
