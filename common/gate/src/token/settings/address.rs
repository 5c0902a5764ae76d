//! Takes addresses and certificate files as an operator writes them; gives them checked; refuses plain http beyond loopback and
//! whatever two parsers could read differently.

use std::path::Path;

use http::Uri;
use postern_base::config::Problem;
use postern_base::http_client::{is_loopback_host, root_store};
use url::Url;

/// https anywhere, http on loopback; nothing that two parsers could read differently.
pub(super) fn web_url(text: &str, at: &str) -> Result<Url, Problem> {
    let refuse = |why: &str| Problem::new(at, format!("{text:?} {why}"));
    let url = Url::parse(text).map_err(|e| refuse(&format!("is not a URL: {e}")))?;
    let host = url.host_str().unwrap_or_default();
    match url.scheme() {
        "https" => {}
        "http" if is_loopback_host(host) => {}
        "http" => return Err(refuse("must be https: plain http is for loopback only")),
        _ => return Err(refuse("must be an https URL")),
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(refuse("holds blanks or characters that a URL has to escape"));
    }
    if url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("must have neither user nor fragment"));
    }
    Ok(url)
}

/// An endpoint's address; kept as it was written, `//` in its path included.
pub(super) fn uri(text: &str, at: &str) -> Result<Uri, Problem> {
    web_url(text, at)?;
    text.parse().map_err(|_| Problem::new(at, format!("{text:?} is not a URL")))
}

/// A value of `iss`.
pub(super) fn issuer(text: &str, at: &str) -> Result<(), Problem> {
    if web_url(text, at)?.query().is_some() {
        return Err(Problem::new(at, "an issuer has no query: write it exactly as tokens have it"));
    }
    Ok(())
}

/// The text of a PEM file with at least one certificate.
pub(super) fn certificates(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let pem = std::fs::read(path).map_err(|e| format!("{shown} cannot be read: {e}"))?;
    root_store(Some(&pem)).map_err(|e| format!("{shown}: {e}"))?;
    let begin = b"-----BEGIN CERTIFICATE-----";
    if !pem.windows(begin.len()).any(|window| window == begin) {
        return Err(format!(
            "{shown} holds no certificate: it should have -----BEGIN CERTIFICATE----- in it"
        ));
    }
    Ok(pem)
}
