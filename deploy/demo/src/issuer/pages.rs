//! Takes what a page is about; gives it as plain HTML without scripts; every page says that this issuer is for development only.

use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use http::{HeaderValue, Response, StatusCode};

use super::PEOPLE;
use crate::serve;

const HEAD: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>DEVELOPMENT ISSUER</title>
<style>body{font:1.1em sans-serif;max-width:32em;margin:3em auto}h1{background:#fc0;padding:.5em}button,input{font:inherit;margin:.3em 0;padding:.4em}</style>
<h1>DEVELOPMENT ISSUER</h1><p>For the Postern demo only: it asks for no password.</p>
";

/// The authorization page: who is logging in?
pub(super) fn authorize(page: &str) -> Response<Bytes> {
    let people = people();
    html(
        StatusCode::OK,
        &format!(
            "<h2>Pick a person</h2><form method=\"post\" action=\"/authorize\"><input type=\"hidden\" name=\"page\" value=\"{}\">{people}</form>",
            escaped(page)
        ),
    )
}

/// The device page: which code, and who is logging in?
pub(super) fn device(user_code: &str) -> Response<Bytes> {
    let people = people();
    html(
        StatusCode::OK,
        &format!(
            "<h2>A device wants to log in</h2><p>Go on only if you started this login and the code is the one that it shows.</p>
<form method=\"post\" action=\"/device\"><p><label>Code <input name=\"user_code\" value=\"{}\" autocomplete=\"off\" required></label></p>{people}</form>",
            escaped(user_code)
        ),
    )
}

/// One sentence.
pub(super) fn message(status: StatusCode, text: &str) -> Response<Bytes> {
    html(status, &format!("<p>{}</p>", escaped(text)))
}

fn people() -> String {
    let button =
        |name: &str, text: &str| format!("<button name=\"person\" value=\"{name}\">{text}</button><br>");
    let buttons = PEOPLE.iter().map(|person| {
        let groups = if person.groups.is_empty() { "no group".to_owned() } else { person.groups.join(", ") };
        button(person.name, &format!("{} ({groups})", person.name))
    });
    buttons.chain([button("nobody", "Refuse")]).collect()
}

fn html(status: StatusCode, body: &str) -> Response<Bytes> {
    let mut response = serve::text(status, "text/html; charset=utf-8", format!("{HEAD}{body}\n"));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    );
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
