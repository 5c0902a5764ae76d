//! What all forwards of one process share: the relay, the connections to it, the tokens. Takes a service as the relay lists it; gives what
//! serves it at an entrance.

use std::sync::Arc;

use postern_base::id::ServiceName;
use url::Url;

use super::http::Service;
use super::http::upstream::Upstream;
use super::link::Link;
use super::location::Map;
use super::tcp::Tcp;
use crate::channel::Opener;
use crate::dial::Dial;
use crate::lease::Leases;
use crate::output::Output;
use crate::relay_api::address::RelayUrl;
use crate::session::refresh::Tokens;

#[derive(Clone)]
pub(crate) struct Means {
    pub(crate) relay: RelayUrl,
    pub(crate) dial: Dial,
    pub(crate) upstream: Upstream,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) link: Arc<Link>,
    pub(crate) out: Output,
}

impl Means {
    pub(crate) fn new(
        relay: RelayUrl,
        dial: Dial,
        tokens: Arc<Tokens>,
        leases: Arc<Leases>,
        out: Output,
    ) -> Self {
        let upstream = Upstream::new(&dial);
        Self { relay, dial, upstream, tokens, leases, link: Arc::default(), out }
    }

    /// An HTTP service that is called at `url`; `audience` is its own.
    pub(crate) fn http(&self, name: ServiceName, url: Url, audience: Option<String>) -> Service {
        Service {
            name,
            upstream: self.upstream.clone(),
            relay: self.relay.clone(),
            map: Map::new(url),
            audience,
            tokens: self.tokens.clone(),
            leases: self.leases.clone(),
            link: self.link.clone(),
            refused: None,
        }
    }

    pub(crate) fn tcp(&self, name: ServiceName, audience: Option<String>) -> Tcp {
        Tcp::new(self.opener(name, audience), self.link.clone(), self.out.clone())
    }

    /// A TCP service, ready to be connected to.
    pub(crate) fn opener(&self, service: ServiceName, audience: Option<String>) -> Opener {
        Opener {
            service,
            relay: self.relay.clone(),
            dial: self.dial.clone(),
            audience,
            tokens: self.tokens.clone(),
            leases: self.leases.clone(),
        }
    }
}
