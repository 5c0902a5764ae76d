//! Takes connections of local programs that speak SOCKS5; carries each to the service that it names: `billing`, `billing.postern`, or a
//! host of the service's own. HTTP services are served as a forward's port serves them, to browsers only
//! where that is wanted; TCP services by a stream of their own, which must not begin as HTTP does. The relay
//! alone says which names there are; every other name, and every address, is refused, nothing is looked up and nothing leaves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use postern_base::id::ServiceName;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use super::Stream;
use super::guard::{Door, Guests};
use super::http::Service;
use super::http::visit::Visit;
use super::means::Means;
use super::opening::Opening;
use super::peer::Whose;
use super::tcp::{Tcp, other_user};
use super::told::Told;
use crate::failure::{Exit, Failure};
use crate::output::text::{Afar, escape};
use crate::relay_api::{self, Catalogue};
use crate::socks::{self, Asked, Destination, Reply};

/// For all that a program says before it is answered.
const GREETING: Duration = Duration::from_secs(10);
/// What the relay said of its services is asked again when it is older and somebody needs it.
const FRESH: Duration = Duration::from_mins(1);
/// Programs also name what is no service, and often: no more questions than one in this time.
const AGAIN: Duration = Duration::from_secs(5);
/// Where programs expect TLS, which a service's own certificate would have to end.
const HTTPS: u16 = 443;
const HTTP: u16 = 80;
/// What may follow a service's name.
const SUFFIX: &str = ".postern";

/// The services of a relay, by their names.
pub(crate) struct Names {
    means: Means,
    guests: Guests,
    told: Told,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// When the relay last said it, and was last asked.
    said: Option<Instant>,
    asked: Option<Instant>,
    places: BTreeMap<ServiceName, Place>,
}

/// A service, as far as a name leads there.
struct Place {
    url: Option<String>,
    audience: Option<String>,
    hosts: Vec<Afar>,
    /// None: it speaks HTTP.
    tcp: Option<Arc<Tcp>>,
}

/// Where a name leads.
enum Way {
    Http(Box<Service>),
    Tcp(Arc<Tcp>),
}

impl Names {
    pub(crate) fn new(means: Means, guests: Guests) -> Self {
        let told = Told::new(means.out.clone());
        Self { means, guests, told, known: Mutex::default() }
    }

    /// Takes what the relay says of its services.
    pub(crate) async fn learn(&self, listed: Vec<relay_api::Service>) {
        self.said(&mut *self.known.lock().await, listed);
    }

    fn said(&self, known: &mut Known, listed: Vec<relay_api::Service>) {
        let mut before = std::mem::take(&mut known.places);
        known.places = listed.into_iter().map(|listed| self.place(listed, &mut before)).collect();
        known.said = Some(Instant::now());
    }

    async fn renew(&self, known: &mut Known) -> Result<(), Failure> {
        known.asked = Some(Instant::now());
        let relay = self.means.leases.relay();
        let ask =
            self.means.tokens.shown(None, Duration::ZERO, |pass| async move { relay.services(&pass).await });
        let catalogue: Result<Catalogue, Failure> = ask.await;
        self.said(known, catalogue?.services);
        Ok(())
    }

    fn place(
        &self,
        listed: relay_api::Service,
        before: &mut BTreeMap<ServiceName, Place>,
    ) -> (ServiceName, Place) {
        let relay_api::Service { name, kind, url, resource: audience, hosts, .. } = listed;
        // What it has told is told, as long as it is the same service.
        let same =
            before.remove(&name).filter(|before| before.audience == audience).and_then(|before| before.tcp);
        let tcp = (kind.raw() == "tcp")
            .then(|| same.unwrap_or_else(|| Arc::new(self.means.tcp(name.clone(), audience.clone()))));
        (name, Place { url, audience, hosts, tcp })
    }

    /// Carries one connection to its end; says whether it reached a service.
    pub(super) async fn carry(&self, mut stream: Stream, whose: Whose) -> bool {
        if whose != Whose::Own {
            if whose == Whose::Other {
                self.told.failure(&other_user());
            }
            stream.reset();
            return false;
        }
        let asked = match tokio::time::timeout(GREETING, socks::asked(&mut stream)).await {
            Ok(Ok(asked)) => asked,
            Ok(Err(socks::SocksError::Io(_))) | Err(_) => return false,
            Ok(Err(error)) => {
                self.told.warn(&error.to_string());
                close(stream).await;
                return false;
            }
        };
        let reply = match self.way(&asked).await {
            Ok((Way::Http(service), name)) => {
                if socks::answer(&mut stream, Reply::Succeeded).await.is_err() {
                    return false;
                }
                let port = asked.port;
                let local =
                    if port == HTTP { format!("http://{name}") } else { format!("http://{name}:{port}") };
                let door = Door::Named(name, port, self.guests);
                return Visit::new(Arc::new(*service), local.into(), door, true).serve(stream).await;
            }
            Ok((Way::Tcp(tcp), _)) => match tcp.open().await {
                Ok(channel) => {
                    let is_told = socks::answer(&mut stream, Reply::Succeeded).await.is_ok();
                    if is_told {
                        tcp.splice(&mut (Box::new(Opening::new(stream)) as Stream), channel).await;
                    }
                    return is_told;
                }
                Err(exit) => reply_of(exit),
            },
            Err(why) => {
                self.told.warn(&why);
                Reply::NotAllowed
            }
        };
        // It may be gone already.
        let _ = socks::answer(&mut stream, reply).await;
        close(stream).await;
        false
    }

    /// Where it leads, and by which name; else why it leads nowhere.
    async fn way(&self, asked: &Asked) -> Result<(Way, Arc<str>), String> {
        let name = match &asked.destination {
            Destination::Name(name) => name,
            Destination::Address(address) => {
                return Err(format!(
                    "{address} is refused: only names of services lead anywhere (have the program leave names to the proxy: socks5h://)"
                ));
            }
        };
        let mut known = self.known.lock().await;
        let is_old = |at: Option<Instant>, age| at.is_none_or(|at: Instant| at.elapsed() > age);
        let is_known = find(&known.places, name).is_some();
        let is_due = is_old(known.said, FRESH) || !is_known;
        if is_due
            && is_old(known.asked, AGAIN)
            && let Err(failure) = self.renew(&mut known).await
        {
            // What is known is good until the relay says something else: it judges each request anew.
            tracing::info!(failure.message, "the relay's services");
        }
        let (service, place) = find(&known.places, name).ok_or_else(|| {
            format!("{name} is refused: no service of yours has that name (see: postern ls)")
        })?;
        if let Some(tcp) = &place.tcp {
            return Ok((Way::Tcp(tcp.clone()), name.as_str().into()));
        }
        if asked.port == HTTPS {
            return Err(format!(
                "{name}, port 443, is refused: use http://{name}/ here; from here on it is TLS"
            ));
        }
        let url = self.url(service, place, name)?;
        let http = self.means.http(service.clone(), url, place.audience.clone());
        Ok((Way::Http(Box::new(http)), name.as_str().into()))
    }

    /// By its own host if that was asked for, else where the relay says.
    fn url(&self, service: &ServiceName, place: &Place, name: &str) -> Result<Url, String> {
        let relay = &self.means.relay;
        let by_host = place.hosts.iter().any(|host| covers(host.raw(), name));
        let published = match &place.url {
            _ if by_host => format!("https://{name}:{}/", relay.port()),
            Some(url) => url.clone(),
            None => return Err(format!("{service} has no address of its own: use one of its hosts")),
        };
        relay.service_at(service, &published).map_err(|error| escape(&error.to_string()))
    }
}

/// The service that a name means: its own name goes before any host.
fn find<'a>(places: &'a BTreeMap<ServiceName, Place>, name: &str) -> Option<(&'a ServiceName, &'a Place)> {
    let of = |name: &str| places.get_key_value(&name.parse::<ServiceName>().ok()?);
    let by_host = || places.iter().find(|(_, place)| place.hosts.iter().any(|host| covers(host.raw(), name)));
    of(name).or_else(|| of(name.strip_suffix(SUFFIX)?)).or_else(by_host)
}

/// A host as a service has it: exact, or `*.` for any one label.
fn covers(host: &str, name: &str) -> bool {
    match host.strip_prefix("*.") {
        Some(suffix) => name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == suffix),
        None => host == name,
    }
}

fn reply_of(exit: Exit) -> Reply {
    match exit {
        Exit::Denied | Exit::NoSuchService | Exit::LoginNeeded | Exit::RateLimited => Reply::NotAllowed,
        Exit::RelayUnreachable => Reply::NetworkUnreachable,
        Exit::UpstreamDown => Reply::HostUnreachable,
        Exit::Other | Exit::Usage | Exit::Config | Exit::Interrupted => Reply::Failure,
    }
}

/// So that the last word arrives.
async fn close(mut stream: Stream) {
    let _ = stream.shutdown().await;
}

#[cfg(test)]
#[path = "names/tests.rs"]
mod tests;
