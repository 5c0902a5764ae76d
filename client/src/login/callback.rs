//! Takes the browser's way back: a port on loopback that is bound before the browser opens, and a path that nobody can guess
//! (RFC 8252 7.3). Gives the query of exactly one callback; refuses every other path, host and method, and a second callback.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use url::Url;

use super::LoginError;

/// A browser opens a handful of connections; nobody else has business here.
const CONNECTIONS: usize = 16;
const HEAD: Duration = Duration::from_secs(10);
/// How long the page may take to reach the browser once the code is here.
const LAST_PAGE: Duration = Duration::from_secs(1);

/// A bound port that waits for one callback.
pub(crate) struct Callback {
    listener: TcpListener,
    redirect: Url,
}

impl Callback {
    /// Binds 127.0.0.1, or `[::1]` where there is no IPv4.
    pub(crate) async fn bind() -> std::io::Result<Self> {
        let addresses =
            [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))];
        let listener = TcpListener::bind(&addresses[..]).await?;
        let secret = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
        let url = format!("http://{}/callback/{secret}", listener.local_addr()?);
        Ok(Self { listener, redirect: Url::parse(&url).map_err(std::io::Error::other)? })
    }

    pub(crate) fn redirect(&self) -> &Url {
        &self.redirect
    }

    /// The query of the callback.
    pub(crate) async fn wait(self, patience: Duration) -> Result<String, LoginError> {
        let minutes = format!("{} minutes", patience.as_secs() / 60);
        tokio::time::timeout(patience, self.serve()).await.unwrap_or(Err(LoginError::TimedOut(minutes)))
    }

    async fn serve(self) -> Result<String, LoginError> {
        // One place: whoever comes second finds it taken.
        let (sender, mut queries) = mpsc::channel::<(String, Id)>(1);
        let redirect = Arc::new(self.redirect);
        let mut connections = JoinSet::new();
        let (query, carrier) = loop {
            tokio::select! {
                biased;
                Some(callback) = queries.recv() => break callback,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => {
                    let (stream, _) = accepted.map_err(LoginError::Callback)?;
                    let (sender, redirect) = (sender.clone(), redirect.clone());
                    connections.spawn(async move {
                        let service = service_fn(|request| {
                            let answer = answer(&request, &redirect, &sender);
                            async move { Ok::<_, std::convert::Infallible>(answer) }
                        });
                        let connection = http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(HEAD)
                            .serve_connection(TokioIo::new(stream), service);
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "callback connection");
                        }
                    });
                }
            }
        };
        drop(self.listener);
        let _ = tokio::time::timeout(LAST_PAGE, ended(&mut connections, carrier)).await;
        Ok(query)
    }
}

/// Waits for the connection that carried the callback, which closes by itself once the page is sent. Others need not, and the end of one
/// (browsers open more than they use) says nothing of the page.
async fn ended(connections: &mut JoinSet<()>, carrier: Id) {
    while let Some(connection) = connections.join_next_with_id().await {
        if connection.map_or_else(|error| error.id(), |(id, ())| id) == carrier {
            return;
        }
    }
}

/// Called within a connection's task: the callback is passed on with that task's id.
fn answer(
    request: &Request<Incoming>,
    redirect: &Url,
    sender: &mpsc::Sender<(String, Id)>,
) -> Response<Full<Bytes>> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let expected = host == Some(redirect.authority())
        && request.method() == Method::GET
        && request.uri().path() == redirect.path();
    let (status, text) = if !expected {
        (StatusCode::NOT_FOUND, "Nothing here.")
    } else if sender
        .try_send((request.uri().query().unwrap_or_default().to_owned(), tokio::task::id()))
        .is_ok()
    {
        (
            StatusCode::OK,
            "Return to the terminal: it says whether the login succeeded. This page can be closed.",
        )
    } else {
        (StatusCode::GONE, "This login was answered already. Return to the terminal.")
    };
    let page = format!("<!doctype html><meta charset=utf-8><title>postern</title><p>{text}\n");
    let mut response = Response::new(Full::new(Bytes::from(page)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (REFERRER_POLICY, "no-referrer"),
        (CONNECTION, "close"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::raw_http;

    #[tokio::test]
    async fn one_callback_on_its_own_path_and_host() {
        let callback = Callback::bind().await.unwrap();
        let redirect = callback.redirect().clone();
        assert_eq!(redirect.host_str(), Some("127.0.0.1"));
        let address: SocketAddr = redirect.authority().parse().unwrap();
        let authority = redirect.authority().to_owned();
        let path = redirect.path().to_owned();
        let get = async |path: &str, host: &str| {
            raw_http(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await
        };
        let browser = async {
            assert!(get("/callback/guess?code=x", &authority).await.starts_with("HTTP/1.1 404"));
            let rebound = format!("evil.example.com:{}", address.port());
            assert!(get(&format!("{path}?code=x"), &rebound).await.starts_with("HTTP/1.1 404"));
            let page = get(&format!("{path}?code=c&state=s"), &authority).await;
            assert!(page.starts_with("HTTP/1.1 200") && page.contains("Return to the terminal"), "{page}");
        };
        let (query, ()) = tokio::join!(callback.wait(Duration::from_secs(10)), browser);
        assert_eq!(query.unwrap(), "code=c&state=s");
        assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the port is closed");
    }

    #[tokio::test]
    async fn the_page_is_waited_for_whatever_else_ends() {
        let mut connections = JoinSet::new();
        let (sent, page) = tokio::sync::oneshot::channel::<()>();
        let carrier = connections
            .spawn(async {
                page.await.unwrap();
            })
            .id();
        let unused = connections.spawn(async {});
        connections.spawn(std::future::pending());
        let mut waiting = Box::pin(ended(&mut connections, carrier));
        while !unused.is_finished() {
            assert!(futures_util::poll!(&mut waiting).is_pending());
            tokio::task::yield_now().await;
        }
        assert!(futures_util::poll!(&mut waiting).is_pending(), "the page is not sent yet");
        sent.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap();
    }

    #[tokio::test]
    async fn nobody_comes() {
        let callback = Callback::bind().await.unwrap();
        assert!(matches!(callback.wait(Duration::from_millis(20)).await, Err(LoginError::TimedOut(_))));
    }
}
