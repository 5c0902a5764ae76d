//! Against a proxy made for the test, over real TCP on loopback.

use std::collections::HashMap;

use tokio::net::TcpListener;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

fn via(text: &str) -> Result<Via, String> {
    text.parse().map_err(|e: ProxyError| e.to_string())
}

#[test]
fn urls_are_understood_and_their_passwords_never_shown() {
    let full = via("http://ada:p%40ss@proxy.example.com:3128/").unwrap();
    assert_eq!(full.to_string(), "proxy.example.com:3128");
    assert_eq!(full.credentials.as_ref().unwrap().expose(), format!("Basic {}", BASE64.encode("ada:p@ss")));
    assert!(!format!("{full:?}").contains("p@ss"), "{full:?}");
    assert_eq!(via("proxy.example.com:3128").unwrap().to_string(), "proxy.example.com:3128");
    assert_eq!(via("http://[::1]:8080").unwrap().to_string(), "[::1]:8080");
    assert_eq!(via("http://proxy.example.com").unwrap().port, 80);
    for bad in [
        "https://proxy.example.com",
        "socks5://ada:secret@h:1",
        "http://",
        "http://h/path",
        "http://ada:secret@h h",
    ] {
        let error = via(bad).unwrap_err();
        assert!(!error.contains("secret"), "{error}");
        assert!(error.contains("write") || error.contains("give"), "{error}");
    }
}

#[test]
fn the_environment_names_a_proxy_and_who_goes_around_it() {
    let of = |pairs: &[(&str, &str)]| {
        let pairs: HashMap<String, String> = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Proxy::from_env(|name| pairs.get(name).cloned()).unwrap()
    };
    let towards = |proxy: &Proxy, host: &str| proxy.towards(host, 443).map(ToString::to_string);
    assert_eq!(towards(&of(&[]), "relay.example.com"), None);
    let proxy = of(&[
        ("HTTPS_PROXY", "http://upper:1"),
        ("https_proxy", "http://lower:2"),
        ("NO_PROXY", ".corp.example.com,*.lab.example.com,10.0.0.0/8,::1,odd.example.com:8443,,"),
    ]);
    assert_eq!(towards(&proxy, "relay.example.com").as_deref(), Some("lower:2"));
    assert_eq!(towards(&proxy, "notcorp.example.com").as_deref(), Some("lower:2"));
    for direct in
        ["LOCALHOST", "corp.example.com", "a.b.corp.example.com", "x.lab.example.com", "10.1.2.3", "::1"]
    {
        assert_eq!(towards(&proxy, direct), None, "{direct}");
    }
    assert!(proxy.towards("odd.example.com", 443).is_some());
    assert!(proxy.towards("odd.example.com", 8443).is_none());
    assert!(of(&[("https_proxy", "h:1"), ("no_proxy", "*")]).towards("relay.example.com", 443).is_none());
    let bad = Proxy::from_env(|name| (name == "HTTPS_PROXY").then(|| "socks5://h:1".to_owned())).unwrap_err();
    assert!(bad.to_string().starts_with("HTTPS_PROXY: ") && bad.to_string().contains("off"), "{bad}");
    assert!("off".parse::<Proxy>().unwrap().towards("relay.example.com", 443).is_none());
}

/// A proxy that takes one request, gives `answer`, and passes on what the caller says from there.
async fn one_proxy(listener: TcpListener, answer: &[u8]) -> (String, Vec<u8>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0);
    }
    // In pieces: a head need not come at once.
    for piece in answer.chunks(7) {
        if stream.write_all(piece).await.is_err() {
            break;
        }
    }
    let mut rest = Vec::new();
    // The caller may reset what it refuses.
    let _ = stream.read_to_end(&mut rest).await;
    (String::from_utf8(head).unwrap(), rest)
}

async fn exchange(user: &str, answer: &[u8]) -> (String, Vec<u8>, Result<(), ProxyError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy: Proxy = format!("http://{user}{}", listener.local_addr().unwrap()).parse().unwrap();
    let dial = async {
        let via = proxy.towards("relay.example.com", 443).unwrap();
        let mut stream = via.connect("relay.example.com", 443, LIMIT).await?;
        stream.write_all(b"hello").await.unwrap();
        Ok(())
    };
    let ((head, rest), outcome) = tokio::join!(one_proxy(listener, answer), dial);
    (head, rest, outcome)
}

#[tokio::test]
async fn connect_opens_a_way_and_says_who_asks() {
    let (head, rest, called) =
        exchange("ada:secret@", b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n").await;
    called.unwrap();
    assert_eq!(rest, b"hello");
    let credentials = BASE64.encode("ada:secret");
    let expected = format!(
        "CONNECT relay.example.com:443 HTTP/1.1\r\nHost: relay.example.com:443\r\nProxy-Authorization: Basic {credentials}\r\n\r\n"
    );
    assert_eq!(head, expected);
    let (head, _, called) = exchange("", b"HTTP/1.0 200\r\n\r\n").await;
    called.unwrap();
    assert!(!head.contains("Proxy-Authorization"), "{head}");
}

#[tokio::test]
async fn refusals_say_what_would_fix_them() {
    let long = [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"x: y\r\n".repeat(ANSWER)].concat();
    let cases: [(&[u8], &str); 7] = [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "USER:PASSWORD"),
        (b"HTTP/1.1 403 Filtered\r\n\r\n<html>", "allow CONNECT"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "could not reach relay.example.com:443"),
        (b"SSH-2.0-server\r\n\r\n", "no HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nearly", "no HTTP proxy"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "no HTTP proxy"),
        (&long, "no HTTP proxy"),
    ];
    for (answer, text) in cases {
        let (_, _, called) = exchange("", answer).await;
        let error = called.unwrap_err().to_string();
        assert!(error.contains(text), "{text}: {error}");
    }
}

#[tokio::test]
async fn a_silent_or_absent_proxy_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let via: Via = address.to_string().parse().unwrap();
    let error = via.connect("relay.example.com", 443, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, ProxyError::Late { .. }), "{error}");
    drop(listener);
    let error = via.connect("relay.example.com", 443, LIMIT).await.unwrap_err();
    assert!(matches!(error, ProxyError::Unreachable { .. }), "{error}");
}
