//! Takes a URL of the issuer and the name of a person; gives what a browser would end at: it keeps cookies, follows redirects and
//! submits forms. Refuses to leave the issuer: a redirect elsewhere (the client's loopback address) is the end, given unvisited.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use http::{HeaderValue, StatusCode, header};
use url::Url;
use url::form_urlencoded::Serializer;

use crate::http::{Answer, Http, full, request};

/// A fresh browser: nobody is logged in yet.
#[derive(Debug)]
pub struct Browser {
    http: Http,
    origin: url::Origin,
    person: Vec<(&'static str, String)>,
    cookies: BTreeMap<String, String>,
}

/// Where the browser ended.
#[derive(Debug)]
pub enum Page {
    /// A page of the issuer.
    Here { url: Url, html: String },
    /// A redirect to somewhere else.
    Elsewhere(Url),
}

impl Browser {
    /// `person` are the headers by which the test issuer knows who sits there (see idp/provider.mjs, interact).
    pub fn new(http: &Http, issuer: &Url, person: Vec<(&'static str, String)>) -> Self {
        Self { http: http.clone(), origin: issuer.origin(), person, cookies: BTreeMap::new() }
    }

    /// Opens a URL and follows redirects.
    pub async fn open(&mut self, url: &Url) -> Result<Page> {
        self.follow("GET", url.clone(), None).await
    }

    /// Submits the first form of a page, with the values of its hidden fields.
    pub async fn submit(&mut self, page: &Page) -> Result<Page> {
        let Page::Here { url, html } = page else { bail!("there is no form elsewhere: {page:?}") };
        let form = tag(html, "form").with_context(|| format!("no form in {html}"))?;
        let action = url.join(&attribute(form, "action").context("the form has no action")?)?;
        let mut fields = Serializer::new(String::new());
        for input in html.match_indices("<input").filter_map(|(at, _)| tag(&html[at..], "input")) {
            if let (Some(name), Some(value)) = (attribute(input, "name"), attribute(input, "value")) {
                fields.append_pair(&name, &value);
            }
        }
        self.follow("POST", action, Some(fields.finish())).await
    }

    async fn follow(&mut self, method: &str, url: Url, form: Option<String>) -> Result<Page> {
        let (mut method, mut url, mut form) = (method, url, form);
        for _ in 0..20 {
            if url.origin() != self.origin {
                return Ok(Page::Elsewhere(url));
            }
            let answer = self.send(method, &url, form.take()).await?;
            if !answer.status.is_redirection() {
                if answer.status != StatusCode::OK {
                    bail!("{method} {url}: {} {}", answer.status, answer.text());
                }
                return Ok(Page::Here { url, html: answer.text() });
            }
            url = url.join(answer.header("location"))?;
            method = "GET";
        }
        bail!("more than 20 redirects, now at {url}")
    }

    async fn send(&mut self, method: &str, url: &Url, form: Option<String>) -> Result<Answer> {
        let mut builder = request(method, url.as_str(), None);
        for (name, value) in &self.person {
            builder = builder.header(*name, value);
        }
        if !self.cookies.is_empty() {
            let all: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            builder = builder.header(header::COOKIE, all.join("; "));
        }
        if form.is_some() {
            builder = builder.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let answer = self.http.send(builder.body(full(form.unwrap_or_default()))?).await?;
        for cookie in answer.headers.get_all(header::SET_COOKIE).iter().filter_map(header_text) {
            let pair = cookie.split(';').next().and_then(|pair| pair.split_once('='));
            match pair {
                Some((name, "")) => drop(self.cookies.remove(name)),
                Some((name, value)) => drop(self.cookies.insert(name.to_owned(), value.to_owned())),
                None => {}
            }
        }
        Ok(answer)
    }
}

fn header_text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

/// The inside of the first tag of that name.
fn tag<'a>(html: &'a str, name: &str) -> Option<&'a str> {
    let start = html.find(&format!("<{name}"))?;
    html[start..].split('>').next()
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let rest = tag.split(&format!(" {name}=\"")).nth(1)?;
    Some(rest.split('"').next()?.replace("&amp;", "&").replace("&quot;", "\""))
}
