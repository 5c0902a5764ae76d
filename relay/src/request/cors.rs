//! Web pages of other origins (Fetch, "CORS protocol"): takes what a browser says of the page that asks; gives the answer to its preflight,
//! the only request that needs no token, and the fields that let the page read any other answer, refusals too. Origins that a service
//! does not list get neither: their preflight is a request without a token like any other.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

use super::body::ResponseBody;
use super::headers::is_ours;
use super::route::{Place, Routed};
use crate::settings::Cors;

/// How long browsers may remember it, in seconds: a reload counts after that.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
/// Everything: the page may read the body, too. Browsers send no cookies along, since nothing here allows credentials.
const EXPOSED: HeaderValue = HeaderValue::from_static("*");
/// What callers of a relay say; `*` would not stand for the first.
const SAID: [&str; 3] = ["authorization", "dpop", "content-type"];

/// An answer at a service with `cors`: for the page of a listed origin, if one asked.
#[derive(Debug)]
pub struct Page(Option<HeaderValue>);

fn cors(routed: &Routed) -> Option<&Cors> {
    match &routed.place {
        Place::Service(service) => service.cors.as_ref(),
        Place::Own(_) | Place::Unknown => None,
    }
}

/// Who asks, where the service has `cors`.
pub fn page(routed: &Routed, headers: &HeaderMap) -> Option<Page> {
    let cors = cors(routed)?;
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = origins.next().filter(|origin| cors.lists(origin) && origins.next().is_none());
    Some(Page(origin.cloned()))
}

/// The answer to a preflight from a listed origin.
pub fn preflight(
    page: Option<&Page>,
    routed: &Routed,
    head: &http::request::Parts,
) -> Option<Response<ResponseBody>> {
    let cors = cors(routed)?;
    page?.0.as_ref()?;
    let asked = head.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    if head.method != Method::OPTIONS || head.headers.contains_key(header::AUTHORIZATION) {
        return None;
    }
    let mut response = Response::new(ResponseBody::full(bytes::Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let fields = response.headers_mut();
    let methods = cors.methods.as_ref().unwrap_or(asked);
    fields.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods.clone());
    fields.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed(&head.headers));
    fields.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    let varies = "Access-Control-Request-Method, Access-Control-Request-Headers";
    fields.insert(header::VARY, HeaderValue::from_static(varies));
    Some(response)
}

/// The fields that may be sent: those that tokens travel in, and those asked for, unless the relay removes them anyway.
fn allowed(headers: &HeaderMap) -> HeaderValue {
    let asked = headers.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS).iter();
    let asked = asked.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let asked = asked.filter_map(|name| name.trim().parse::<HeaderName>().ok());
    let mut names: Vec<HeaderName> = SAID.into_iter().map(HeaderName::from_static).collect();
    names.extend(asked.filter(|name| !is_ours(name) && !SAID.contains(&name.as_str())));
    let names = names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    HeaderValue::try_from(names).unwrap_or(HeaderValue::from_static("authorization"))
}

impl Page {
    /// Lets the page read this answer.
    pub fn may_read(&self, headers: &mut HeaderMap) {
        varies(headers);
        if let Some(origin) = &self.0 {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}

/// Caches keep one answer for each origin. Said of all refusals, so that services with `cors` are not told from what is not there.
pub fn varies(headers: &mut HeaderMap) {
    const ORIGIN: HeaderValue = HeaderValue::from_static("Origin");
    if !headers.get_all(header::VARY).iter().any(|vary| vary == ORIGIN) {
        headers.append(header::VARY, ORIGIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(names: &'static str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static(names));
        allowed(&headers).to_str().unwrap().to_owned()
    }

    #[test]
    fn what_the_relay_removes_is_not_offered() {
        let usual = SAID.join(", ");
        assert_eq!(allowed(&HeaderMap::new()), usual);
        assert_eq!(
            asked("authorization,x-trace-id, Accept-Language"),
            format!("{usual}, x-trace-id, accept-language")
        );
        assert_eq!(asked("x-postern-subject, X_Forwarded_For, te, , a b"), usual);
    }

    #[test]
    fn a_page_is_named_and_others_are_not() {
        let mut headers = HeaderMap::new();
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        Page(None).may_read(&mut headers);
        assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
        Page(Some(HeaderValue::from_static("https://app.example.com"))).may_read(&mut headers);
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://app.example.com");
        let vary: Vec<_> = headers.get_all(header::VARY).iter().collect();
        assert_eq!(vary, ["Accept", "Origin"], "once");
    }
}
