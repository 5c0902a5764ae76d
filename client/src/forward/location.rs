//! Takes addresses on either side of a forward; gives the other side's: a local target becomes the service's URL, a `Location` that
//! names the service's URL becomes a local one. Refuses a target whose dot segments could lead out of the service.

use http::Uri;
use http::uri::{PathAndQuery, Scheme};
use percent_encoding::percent_decode_str;
use url::Url;

/// Why a local target goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("Ask for a path that starts with a slash.")]
    NoPath,
    #[error("The path has a segment that is . or .. (or its escaped form): ask for the path that it means.")]
    Dots,
}

/// The service's public URL, and what its local address is called.
#[derive(Debug, Clone)]
pub(crate) struct Map {
    public: Url,
    /// The public path without its last slash.
    prefix: String,
}

impl Map {
    pub(crate) fn new(public: Url) -> Self {
        let prefix = public.path().trim_end_matches('/').to_owned();
        Self { public, prefix }
    }

    /// `https://host[:port]` of the service.
    pub(crate) fn origin(&self) -> String {
        self.public.origin().ascii_serialization()
    }

    /// The public URI for a local target, byte for byte behind the prefix: the relay judges the very path that was asked for.
    /// Dot segments are refused: behind the prefix they could name another service, with this one's token.
    pub(crate) fn outward(&self, target: &Uri) -> Result<Uri, TargetError> {
        let local = target.path_and_query().map_or("/", PathAndQuery::as_str);
        if !local.starts_with('/') {
            return Err(TargetError::NoPath);
        }
        if has_dots(target.path()) {
            return Err(TargetError::Dots);
        }
        Uri::builder()
            .scheme(Scheme::HTTPS)
            .authority(self.public.authority())
            .path_and_query(format!("{}{local}", self.prefix))
            .build()
            .map_err(|_| TargetError::NoPath)
    }

    /// What a `Location` becomes for a program that talks to `local` (`http://127.0.0.1:8080`); `None` leaves it as it is.
    pub(crate) fn inward(&self, location: &str, asked: &Uri, local: &str) -> Option<String> {
        let absolute = location.starts_with('/') || Url::parse(location).is_ok();
        if !absolute {
            return None;
        }
        let url = Url::parse(&asked.to_string()).ok()?.join(location).ok()?;
        let path = url.path().strip_prefix(&self.prefix)?;
        if url.origin() != self.public.origin() || !(path.is_empty() || path.starts_with('/')) {
            return None;
        }
        let query = url.query().map(|q| format!("?{q}")).unwrap_or_default();
        let fragment = url.fragment().map(|f| format!("#{f}")).unwrap_or_default();
        let path = if path.is_empty() { "/" } else { path };
        Some(format!("{local}{path}{query}{fragment}"))
    }
}

/// Whether some segment is `.` or `..` once escapes are read, also before parameters, behind a backslash or an escaped slash.
fn has_dots(path: &str) -> bool {
    let decoded = percent_decode_str(path).collect::<Vec<u8>>();
    decoded
        .split(|byte| matches!(byte, b'/' | b'\\'))
        .any(|segment| matches!(segment.split(|byte| *byte == b';').next(), Some(b"." | b"..")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(url: &str) -> Map {
        Map::new(Url::parse(url).unwrap())
    }

    #[test]
    fn targets_go_out_unchanged_behind_the_prefix() {
        let billing = map("https://relay.example.com:8443/billing/");
        let out = |target: &str| billing.outward(&target.parse().unwrap()).map(|uri| uri.to_string());
        for target in
            ["/", "/v1/x%2f?a=b%20c/../d", "//x", "/%7e;p", "/.well-known/...", "/a..b/..c", "/x;.."]
        {
            assert_eq!(out(target).unwrap(), format!("https://relay.example.com:8443/billing{target}"));
        }
        assert_eq!(out("http://127.0.0.1:8080/v1").unwrap(), "https://relay.example.com:8443/billing/v1");
        assert_eq!(out("*"), Err(TargetError::NoPath));
        for dots in [
            "/../wiki/",
            "/..",
            "/v1/./x",
            "/%2e%2E/wiki/",
            "/.%2e/wiki",
            "/..;a=b/wiki",
            "/..%3b/wiki",
            "/x%2f..%2fwiki",
            "/x%5c..%5cwiki",
            "/%2e?a=b",
            "http://127.0.0.1:8080/../wiki/",
        ] {
            assert_eq!(out(dots), Err(TargetError::Dots), "{dots}");
        }
        assert_eq!(
            map("https://billing.example.com/").outward(&"/v1".parse().unwrap()).unwrap(),
            "https://billing.example.com/v1"
        );
    }

    #[test]
    fn locations_of_the_service_come_home() {
        let billing = map("https://relay.example.com/billing/");
        let asked: Uri = "https://relay.example.com/billing/v1/x".parse().unwrap();
        let home = |location: &str| billing.inward(location, &asked, "http://127.0.0.1:8080");
        for (location, expected) in [
            ("https://relay.example.com/billing/v2?a=b#c", "http://127.0.0.1:8080/v2?a=b#c"),
            ("https://relay.example.com/billing", "http://127.0.0.1:8080/"),
            ("/billing/v2", "http://127.0.0.1:8080/v2"),
        ] {
            assert_eq!(home(location).unwrap(), expected);
        }
        for left in [
            "/login",
            "v2",
            "../v2",
            "https://id.example.com/",
            "https://relay.example.com/billing2/",
            "//x/billing/",
        ] {
            assert_eq!(home(left), None, "{left}");
        }
    }
}
