//! The way to a relay through a proxy that is made up here.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use postern_base::http_client::{HttpClient, HttpClientOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;
use crate::testing::Fake;

/// A proxy that tells where it was asked to go, and goes there.
async fn proxy(tasks: &mut JoinSet<()>) -> (Proxy, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let tell = tell.clone();
            connections.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
                let port = target.rsplit_once(':').unwrap().1.parse().unwrap();
                let mut there = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
                tell.send(target).unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                // Either side may break off.
                let _ = copy_bidirectional(&mut stream, &mut there).await;
            });
        }
    });
    (format!("http://{address}").parse().unwrap(), told)
}

#[tokio::test]
async fn all_ways_to_the_relay_lead_through_the_proxy() {
    let mut tasks = JoinSet::new();
    let (proxy, mut told) = proxy(&mut tasks).await;
    let relay = Fake::https(|_| Response::new("here".into())).await;
    let roots = relay.ca.as_ref().map(String::as_bytes);
    let dial = Dial::new(&relay.relay(), proxy.clone(), roots).unwrap();
    let target = format!("localhost:{}", relay.address.port());
    dial.http1().await.unwrap();
    assert_eq!(told.recv().await.unwrap(), target);
    let options = HttpClientOptions {
        extra_roots_pem: roots.map(<[u8]>::to_vec),
        allow_private: true,
        proxy,
        ..HttpClientOptions::default()
    };
    let client = HttpClient::new(options).unwrap();
    let answer = client.send(Request::get(relay.url("/x")).body(Bytes::new()).unwrap()).await.unwrap();
    assert_eq!(answer.body(), "here");
    assert_eq!(told.recv().await.unwrap(), target);
}

#[tokio::test]
async fn a_proxy_that_is_away_is_named() {
    let relay = Fake::https(|_| Response::new("here".into())).await;
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = closed.local_addr().unwrap();
    let dial = Dial::new(&relay.relay(), format!("http://{address}").parse().unwrap(), None).unwrap();
    let error = dial.tcp().await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("HTTPS_PROXY"), "{error}");
    assert!(relay.seen().is_empty());
}
