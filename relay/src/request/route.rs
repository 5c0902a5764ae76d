//! Where a request wants to go: takes host and path, gives the relay's own address, a service with its canonical path, or Unknown.
//! Unknown is not refused here: only callers with a good token may learn that a service does not exist. What is refused is a request
//! that two readers could understand in two ways.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Version, header};
use postern_gate::path::{CanonicalPath, PathMode};
use postern_gate::policy::ServiceKind;

use super::own::{OwnAddress, TCP_SERVICES};
use super::respond::Refusal;
use super::upgrade::Protocol;
use crate::public::Connection;
use crate::relay::Snapshot;
use crate::settings::{HostPattern, Service, Settings};

/// The longest target, in bytes (security.md 2).
const TARGET_LIMIT: usize = 8 * 1024;

/// The compiled addresses of all services.
#[derive(Debug)]
pub struct Routes {
    exact: HashMap<String, Arc<Service>>,
    wildcard: HashMap<String, Arc<Service>>,
    prefix: HashMap<String, Arc<Service>>,
}

/// Where a request leads.
#[derive(Debug)]
pub enum Place {
    Own(OwnAddress),
    Service(Arc<Service>),
    Unknown,
}

impl Place {
    fn service(found: Option<&Arc<Service>>) -> Self {
        found.map_or(Self::Unknown, |service| Self::Service(service.clone()))
    }
}

/// A request's place, and the one path on which policy and upstream agree.
#[derive(Debug)]
pub struct Routed {
    pub place: Place,
    /// As the caller wrote it.
    pub authority: Authority,
    /// Within the service: its prefix removed where it has one to remove.
    pub path: CanonicalPath<'static>,
    /// As the caller wrote it, for the query.
    target: PathAndQuery,
    /// On the relay's own host.
    at_relay: bool,
    /// It is the address of a TCP service, were there one of that name.
    at_tcp: bool,
}

impl Routed {
    /// The prefix that was removed.
    pub fn prefix(&self) -> Option<&str> {
        match &self.place {
            Place::Service(service) if self.at_relay && service.strip_prefix => service.prefix.as_deref(),
            Place::Service(_) | Place::Own(_) | Place::Unknown => None,
        }
    }

    /// What the upstream is asked for.
    pub fn path_and_query(&self) -> Cow<'_, str> {
        match self.target.query() {
            Some(query) => format!("{}?{query}", self.path.as_str()).into(),
            None => self.path.as_str().into(),
        }
    }

    /// The request's address as its caller knows it, without query: behind the relay's public name, whatever the listener is called.
    pub fn public_uri(&self, settings: &Settings) -> String {
        let (host, path) = (lower(self.authority.host()), self.target.path());
        match settings.url.port() {
            _ if host == settings.url.host() => own_uri(settings, path),
            443 => format!("https://{host}{path}"),
            port => format!("https://{host}:{port}{path}"),
        }
    }

    /// The path suffix of the metadata (RFC 9728) that a 401 points to: by the request's address alone, alike whether or not a service
    /// is there.
    pub fn metadata_path(&self) -> &str {
        // Of a service's path the part that was removed begins as the whole path did.
        let path = self.prefix().unwrap_or(self.path.as_str());
        if self.at_relay { metadata_path(path) } else { "" }
    }

    pub fn is_tcp(&self) -> bool {
        matches!(&self.place, Place::Service(service) if service.kind == ServiceKind::Tcp)
    }

    /// Whether a connection may switch to this protocol here. Alike whether or not a service is there.
    pub fn may_switch(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::WebSocket => true,
            Protocol::Tcp => self.at_tcp,
        }
    }
}

impl Routes {
    pub fn new(settings: &Settings) -> Self {
        let mut routes = Self { exact: HashMap::new(), wildcard: HashMap::new(), prefix: HashMap::new() };
        for service in settings.services.values() {
            for host in &service.hosts {
                match host {
                    HostPattern::Exact(host) => routes.exact.insert(host.clone(), service.clone()),
                    HostPattern::Wildcard(suffix) => routes.wildcard.insert(suffix.clone(), service.clone()),
                };
            }
            if let Some(prefix) = &service.prefix {
                routes.prefix.insert(prefix.clone(), service.clone());
            }
        }
        routes
    }

    /// Whether a connection to this host, or to none in particular, may show a certificate that the caller's token is bound to.
    pub fn ask_for_certificate(&self, settings: &Settings, server_name: Option<&str>) -> bool {
        let Some(host) = server_name.map(lower) else { return settings.client_certificates };
        if host == settings.url.host() {
            return settings.client_certificates;
        }
        matches!(self.by_host(&host), Place::Service(service) if service.client_certificates)
    }

    fn by_host(&self, host: &str) -> Place {
        let wildcard = || host.split_once('.').and_then(|(_, suffix)| self.wildcard.get(suffix));
        Place::service(self.exact.get(host).or_else(wildcard))
    }

    /// The service with the longest prefix of whole segments.
    fn by_prefix(&self, path: &str) -> Option<&Arc<Service>> {
        let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
        ends.filter_map(|end| self.prefix.get(&path[..end])).last()
    }
}

/// The first segment of a path on the relay's own host; none for its own addresses.
fn metadata_path(path: &str) -> &str {
    let end = path.get(1..).and_then(|rest| rest.find('/')).map_or(path.len(), |at| at + 1);
    let first = path.get(..end).unwrap_or_default();
    let is_own = first == "/" || first.starts_with("/.postern") || first.starts_with("/.well-known");
    if is_own { "" } else { first }
}

/// The address of a path on the relay's own host.
pub fn own_uri(settings: &Settings, path: &str) -> String {
    format!("{}{path}", settings.url.origin())
}

pub fn route(
    snapshot: &Snapshot,
    connection: &Connection,
    head: &http::request::Parts,
) -> Result<Routed, Refusal> {
    framing(&head.headers)?;
    let authority = authority(head)?;
    let host = lower(authority.host());
    if connection.server_name.as_deref().is_some_and(|name| name != host) {
        return Err(Refusal::Misdirected);
    }
    let target = target(head)?.clone();
    if target.query().is_some_and(has_token) {
        return Err(Refusal::Malformed(
            "a token in the query ends up in logs: send it as Authorization: Bearer".into(),
        ));
    }
    // Strict unless the path leads to a service that said loose: a looser reading never changes which service that is.
    let (path, too_loose) = match CanonicalPath::parse(target.path(), PathMode::Strict) {
        Ok(path) => (path, None),
        Err(strict) => {
            let path = CanonicalPath::parse(target.path(), PathMode::Loose);
            (path.map_err(|e| Refusal::Malformed(e.to_string()))?, Some(strict))
        }
    };
    let is_own_host = host == snapshot.settings.url.host();
    // Without a name in TLS a certificate was shown to the relay's own host, and to no other.
    if connection.server_name.is_none() && connection.certificate.is_some() && !is_own_host {
        return Err(Refusal::Misdirected);
    }
    let place = if is_own_host { own_place(snapshot, path.as_str()) } else { snapshot.routes.by_host(&host) };
    let at_tcp = is_own_host && path.as_str().starts_with(TCP_SERVICES);
    if let Some(error) = too_loose
        && !matches!(&place, Place::Service(service) if service.paths == PathMode::Loose)
    {
        return Err(Refusal::Malformed(error.to_string()));
    }
    let stripped = match &place {
        Place::Service(service) if is_own_host && service.strip_prefix => service.prefix.as_deref(),
        Place::Service(_) | Place::Own(_) | Place::Unknown => None,
    };
    let path = match stripped {
        None => path.into_owned(),
        Some(prefix) => {
            let refuse = || Refusal::Malformed("the path is not canonical below its prefix".into());
            path.strip_prefix(prefix).ok_or_else(refuse)?.into_owned()
        }
    };
    Ok(Routed { place, authority, path, target, at_relay: is_own_host, at_tcp })
}

/// What a path on the relay's own host leads to.
fn own_place(snapshot: &Snapshot, path: &str) -> Place {
    if let Some(name) = path.strip_prefix(TCP_SERVICES) {
        let service = snapshot.settings.services.get(name);
        return Place::service(service.filter(|service| service.kind == ServiceKind::Tcp));
    }
    match OwnAddress::of(path) {
        Some(own) => Place::Own(own),
        None => Place::service(snapshot.routes.by_prefix(path)),
    }
}

fn lower(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|b| b.is_ascii_uppercase()) { host.to_ascii_lowercase().into() } else { host.into() }
}

/// Whether a query carries a token (RFC 6750, 2.3), its name escaped or not.
fn has_token(query: &str) -> bool {
    let may = query.contains("access_token") || query.contains('%');
    may && url::form_urlencoded::parse(query.as_bytes()).any(|(key, _)| key == "access_token")
}

/// hyper reads `gzip, chunked` as chunked and leaves the gzip to us; no upstream of ours would be told of it (RFC 9112, 6.1).
fn framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !is_chunked || codings.next().is_some() {
        return Err(Refusal::Malformed("the only transfer coding served is chunked".into()));
    }
    let lengths = headers.get_all(header::CONTENT_LENGTH);
    let first = lengths.iter().next();
    let is_length =
        |value: &HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    if lengths.iter().all(|length| Some(length) == first && is_length(length)) {
        Ok(())
    } else {
        Err(Refusal::Malformed("malformed or differing Content-Length".into()))
    }
}

/// The one authority of a request: Host in HTTP/1.1, `:authority` in HTTP/2; where both are there they must agree.
fn authority(head: &http::request::Parts) -> Result<Authority, Refusal> {
    let refuse = |why: &str| Refusal::Malformed(why.to_owned());
    let from_host = host_field(&head.headers)?;
    let from_uri = head.uri.authority().cloned();
    if from_uri.as_ref().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(refuse("user information in the authority"));
    }
    if from_uri.iter().chain(&from_host).any(|authority| !has_plain_port(authority)) {
        return Err(refuse("the port in Host or :authority is not a number"));
    }
    match (from_uri, from_host) {
        (Some(uri), Some(host)) if uri.as_str().eq_ignore_ascii_case(host.as_str()) => Ok(uri),
        (Some(_), Some(_)) => Err(refuse("Host differs from the request's authority")),
        (Some(uri), None) if head.version == Version::HTTP_2 => Ok(uri),
        (None, Some(host)) => Ok(host),
        _ => Err(refuse("exactly one Host field is needed")),
    }
}

/// The library takes anything behind the last colon for a port; upstreams would read it as part of a host.
fn has_plain_port(authority: &Authority) -> bool {
    match authority.as_str().strip_prefix(authority.host()) {
        Some("") => true,
        Some(rest) => rest
            .strip_prefix(':')
            .is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()),
        None => false,
    }
}

fn host_field(headers: &HeaderMap) -> Result<Option<Authority>, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Refusal::Malformed("exactly one Host field is needed".into()));
    }
    let parse = |value: &HeaderValue| {
        let authority = Authority::try_from(value.as_bytes()).ok();
        authority
            .filter(|authority| !authority.as_str().contains('@') && !authority.host().is_empty())
            .ok_or_else(|| Refusal::Malformed("the Host field is malformed".into()))
    };
    first.map(parse).transpose()
}

fn target(head: &http::request::Parts) -> Result<&PathAndQuery, Refusal> {
    let refuse = |why: &str| Refusal::Malformed(why.to_owned());
    if head
        .uri
        .scheme()
        .is_some_and(|scheme| scheme != &http::uri::Scheme::HTTPS && scheme != &http::uri::Scheme::HTTP)
    {
        return Err(refuse("only http and https targets are served"));
    }
    let Some(target) = head.uri.path_and_query() else {
        return Err(refuse("the target needs a path"));
    };
    if target.as_str().len() > TARGET_LIMIT {
        return Err(Refusal::TargetTooLong);
    }
    if let Some(query) = target.query()
        && query.bytes().any(|byte| byte <= b' ' || byte == 0x7f)
    {
        return Err(refuse("white space or control characters in the query"));
    }
    Ok(target)
}

#[cfg(test)]
mod tests;
