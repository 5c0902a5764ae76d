//! Where a request wants to go: takes host and path, gives the relay's own address, a service with its canonical path, or Unknown.
//! Unknown is not refused here: only callers with a good token may learn that a service does not exist. What is refused is a request
//! that two readers could understand in two ways.

use std::collections::HashMap;
use std::sync::Arc;

use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Version, header};
use postern_gate::path::{CanonicalPath, PathMode};

use super::own::OwnAddress;
use super::respond::Refusal;
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

/// A request's place, and the one path on which policy and upstream agree.
#[derive(Debug)]
pub struct Routed {
    pub place: Place,
    /// The host without its port, in lower case.
    pub host: String,
    /// As the caller wrote the authority.
    pub authority: String,
    /// Within the service: its prefix removed where it has one to remove.
    pub path: CanonicalPath<'static>,
    pub query: Option<String>,
    /// The prefix that was removed.
    pub prefix: Option<String>,
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

    fn by_host(&self, host: &str) -> Option<&Arc<Service>> {
        let wildcard = || host.split_once('.').and_then(|(_, suffix)| self.wildcard.get(suffix));
        self.exact.get(host).or_else(wildcard)
    }

    /// The service with the longest prefix of whole segments.
    fn by_prefix(&self, path: &str) -> Option<&Arc<Service>> {
        let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
        ends.filter_map(|end| self.prefix.get(&path[..end])).last()
    }
}

pub fn route(
    snapshot: &Snapshot,
    connection: &Connection,
    head: &http::request::Parts,
) -> Result<Routed, Refusal> {
    framing(&head.headers)?;
    let authority = authority(head)?;
    let host = authority.host().to_ascii_lowercase();
    if connection.server_name.as_deref().is_some_and(|name| name != host) {
        return Err(Refusal::Misdirected);
    }
    let (raw, query) = target(head)?;
    if let Some(query) = query
        && url::form_urlencoded::parse(query.as_bytes()).any(|(key, _)| key == "access_token")
    {
        return Err(Refusal::Malformed(
            "a token in the query ends up in logs: send it as Authorization: Bearer".into(),
        ));
    }
    let routed = |place, path: CanonicalPath<'_>, prefix| Routed {
        place,
        host: host.clone(),
        authority: authority.to_string(),
        path: path.into_owned(),
        query: query.map(str::to_owned),
        prefix,
    };
    // Strict unless the path leads to a service that said loose: a looser reading never changes which service that is.
    let strict = CanonicalPath::parse(raw, PathMode::Strict);
    let path = match &strict {
        Ok(path) => path.clone(),
        Err(_) => {
            CanonicalPath::parse(raw, PathMode::Loose).map_err(|e| Refusal::Malformed(e.to_string()))?
        }
    };
    let refuse_loose = |service: Option<&Arc<Service>>| match &strict {
        Err(e) if service.is_none_or(|service| service.paths == PathMode::Strict) => {
            Err(Refusal::Malformed(e.to_string()))
        }
        _ => Ok(()),
    };
    if host == snapshot.settings.url.host() {
        if let Some(own) = OwnAddress::of(path.as_str()) {
            refuse_loose(None)?;
            return Ok(routed(Place::Own(own), path, None));
        }
        let found = snapshot.routes.by_prefix(path.as_str());
        refuse_loose(found)?;
        return match found {
            None => Ok(routed(Place::Unknown, path, None)),
            Some(service) => {
                let prefix = service.prefix.clone().filter(|_| service.strip_prefix);
                let rest = match &prefix {
                    Some(prefix) => path.strip_prefix(prefix).map(CanonicalPath::into_owned),
                    None => Some(path.clone().into_owned()),
                };
                let rest = rest
                    .ok_or_else(|| Refusal::Malformed("the path is not canonical below its prefix".into()))?;
                Ok(routed(Place::Service(service.clone()), rest, prefix))
            }
        };
    }
    let found = snapshot.routes.by_host(&host);
    refuse_loose(found)?;
    Ok(routed(found.map_or(Place::Unknown, |service| Place::Service(service.clone())), path, None))
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

fn target(head: &http::request::Parts) -> Result<(&str, Option<&str>), Refusal> {
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
    Ok((target.path(), target.query()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(uri: &str, hosts: &[&str], version: Version) -> http::request::Parts {
        let mut request = http::Request::builder().uri(uri).version(version);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn one_authority_and_no_other() {
        let ok =
            |uri, hosts: &[&str], version| authority(&head(uri, hosts, version)).map(|a| a.to_string()).ok();
        assert_eq!(ok("/x", &["a.example"], Version::HTTP_11).as_deref(), Some("a.example"));
        assert_eq!(ok("http://a.example/x", &["A.example"], Version::HTTP_11).as_deref(), Some("a.example"));
        assert_eq!(ok("https://a.example/x", &[], Version::HTTP_2).as_deref(), Some("a.example"));
        for (uri, hosts, version) in [
            ("/x", &[][..], Version::HTTP_11),
            ("/x", &["a.example", "b.example"], Version::HTTP_11),
            ("/x", &["a.example", "a.example"], Version::HTTP_11),
            ("http://b.example/x", &["a.example"], Version::HTTP_11),
            ("http://a.example/x", &[], Version::HTTP_11),
            ("https://a.example/x", &["b.example"], Version::HTTP_2),
            ("/x", &["u@a.example"], Version::HTTP_11),
            ("/x", &["a b"], Version::HTTP_11),
            ("/x", &[""], Version::HTTP_11),
            ("/x", &["a.example:443,evil.example"], Version::HTTP_11),
            ("/x", &["a.example:evil"], Version::HTTP_11),
            ("/x", &["a.example:99999"], Version::HTTP_11),
            ("/x", &["a.example:"], Version::HTTP_11),
        ] {
            assert_eq!(ok(uri, hosts, version), None, "{uri} {hosts:?}");
        }
    }
}
