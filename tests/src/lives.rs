//! Live streams with their leases: takes a stand with two services that keep what they get open, and tokens; gives web sockets and TCP
//! connections over HTTP/1.1 and HTTP/2 whose being open, or being cut, can be asked; renews leases as a client does.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::counting::Counting;
use crate::http::switch::{Many, Once, Stream, switched};
use crate::http::{Answer, Http, empty, full, request};
use crate::mint::Mint;
use crate::stand::{Extra, Stand};
use crate::wait;
use crate::websocket::{self, Kind};

const TABLES: &str = r#"
[services.sock]
agent = "dc1"
limit = { idle = "off" }
rules = [{ name = "finance talks", allow = "group:finance", to = "* /**" }]

[services.pipe]
kind = "tcp"
agent = "dc1"
rules = [{ name = "finance connects", allow = "group:finance", to = "CONNECT" }]
"#;

/// A stand with the services `sock` (HTTP) and `pipe` (TCP), and tokens from a mint.
pub struct Place {
    pub stand: Stand,
    pub mint: Mint,
    pub upstream: Counting,
}

impl Place {
    /// Tokens are the mint's.
    pub async fn start(extra: Extra) -> Result<Self> {
        let place = Self::with_issuer(extra).await?;
        place.mint.replace(&place.stand).await?;
        Ok(place)
    }

    /// Tokens are those of the stand's own issuer.
    pub async fn with_issuer(extra: Extra) -> Result<Self> {
        let upstream = Counting::start(Ipv4Addr::LOCALHOST.into())?;
        let tables = format!(
            "[services.sock]\nupstream = \"{}\"\n[services.pipe]\nupstream = \"{}\"\n",
            upstream.url(),
            upstream.tcp()
        );
        let extra = Extra {
            issuer: format!("user_from = [\"preferred_username\", \"sub\"]\n{}", extra.issuer),
            tables: format!("{TABLES}{}", extra.tables),
            agent_tables: format!("{tables}{}", extra.agent_tables),
            ..extra
        };
        let stand = Stand::start_with(extra).await?;
        let mint = Mint::publish(&stand)?;
        Ok(Self { stand, mint, upstream })
    }

    /// Of a few minutes.
    pub fn token(&self, user: &str) -> Result<String> {
        self.mint.token(user, Duration::from_mins(5), &json!({}))
    }

    /// One stream of each kind over each version of HTTP.
    pub async fn one_of_each(&self, token: &str) -> Result<Vec<Live>> {
        let mut many = self.many().await?;
        let mut over =
            [socket_over(&mut many, token, "/sock/socket/h2").await?, pipe_over(&mut many, token).await?];
        let many = Arc::new(many);
        for live in &mut over {
            live.on = Some(many.clone());
        }
        let [socket, pipe] = over;
        Ok(vec![self.socket(token).await?, self.pipe(token).await?, socket, pipe])
    }

    pub async fn many(&self) -> Result<Many> {
        Many::connect(self.stand.port, self.stand.pki.roots()?).await
    }

    /// A WebSocket over HTTP/1.1.
    pub async fn socket(&self, token: &str) -> Result<Live> {
        self.socket_as(&[("authorization", &format!("Bearer {token}"))], "/sock/socket/h1").await
    }

    pub async fn socket_as(&self, who: &[(&str, &str)], path: &str) -> Result<Live> {
        let once = self.ask(who, path).await?;
        Live::of(&once.answer.headers().clone(), once.stream().await?, false)
    }

    /// The answer to a request for a WebSocket, whatever it is.
    pub async fn ask(&self, who: &[(&str, &str)], path: &str) -> Result<Once> {
        let mut builder = request("GET", path, None).header("host", format!("127.0.0.1:{}", self.stand.port));
        let key = websocket::key();
        let asks = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", &key),
        ];
        for (name, value) in asks.iter().chain(who) {
            builder = builder.header(*name, *value);
        }
        Once::send(self.stand.port, self.stand.pki.roots()?, builder.body(empty())?).await
    }

    /// A TCP connection over HTTP/1.1.
    pub async fn pipe(&self, token: &str) -> Result<Live> {
        let builder = request("GET", "/.postern/tcp/pipe", Some(token))
            .header("host", format!("127.0.0.1:{}", self.stand.port))
            .header("connection", "Upgrade")
            .header("upgrade", "postern-tcp");
        let once = Once::send(self.stand.port, self.stand.pki.roots()?, builder.body(empty())?).await?;
        Live::of(&once.answer.headers().clone(), once.stream().await?, true)
    }

    /// Renews with a bearer token; gives what the relay says of each id, in order.
    pub async fn renew(&self, token: &str, leases: &[&str]) -> Result<Vec<Value>> {
        let answer = self.renew_as(&[("authorization", &format!("Bearer {token}"))], leases).await?;
        let answer = answer.expect_status(200)?.json()?;
        answer["leases"].as_array().cloned().context("no leases in the answer")
    }

    pub async fn renew_as(&self, who: &[(&str, &str)], leases: &[&str]) -> Result<Answer> {
        self.post_lease(who, json!({ "leases": leases }).to_string()).await
    }

    pub async fn post_lease(&self, who: &[(&str, &str)], body: String) -> Result<Answer> {
        let mut builder = request("POST", &self.stand.at("/.postern/lease"), None);
        for (name, value) in who {
            builder = builder.header(*name, *value);
        }
        // On a connection of its own: one on which a body was refused is closed.
        let http = Http::h1(self.stand.pki.roots()?)?;
        http.send(builder.header("content-type", "application/json").body(full(body))?).await
    }
}

/// A WebSocket on a stream of an HTTP/2 connection.
pub async fn socket_over(many: &mut Many, token: &str, path: &str) -> Result<Live> {
    let authorization = format!("Bearer {token}");
    let fields = [("authorization", authorization.as_str()), ("sec-websocket-version", "13")];
    let answer = many.ask("websocket", path, &fields).await?;
    ensure!(answer.status() == StatusCode::OK, "{answer:?}");
    Live::of(&answer.headers().clone(), switched(answer).await?, false)
}

/// A TCP connection on one.
pub async fn pipe_over(many: &mut Many, token: &str) -> Result<Live> {
    let authorization = format!("Bearer {token}");
    let answer = many.ask("postern-tcp", "/.postern/tcp/pipe", &[("authorization", &authorization)]).await?;
    ensure!(answer.status() == StatusCode::OK, "{answer:?}");
    Live::of(&answer.headers().clone(), switched(answer).await?, true)
}

/// One live stream.
pub struct Live {
    pub lease: String,
    pub request_id: String,
    stream: Stream,
    pub is_tcp: bool,
    is_http2: bool,
    /// The connection that it is a stream of, where nobody else holds that.
    pub on: Option<Arc<Many>>,
}

impl Live {
    fn of(fields: &HeaderMap, stream: Stream, is_tcp: bool) -> Result<Self> {
        let field = |name: &str| -> Result<String> {
            let value = fields.get(name).with_context(|| format!("no {name}: {fields:?}"))?;
            Ok(value.to_str()?.to_owned())
        };
        let lease = field("postern-lease")?;
        let digits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        ensure!(lease.len() >= 22 && lease.bytes().all(digits), "a lease of {lease:?}");
        let is_http2 = !fields.contains_key("upgrade");
        Ok(Self { lease, request_id: field("x-request-id")?, stream, is_tcp, is_http2, on: None })
    }

    /// Something sent comes back.
    pub async fn is_open(&mut self) -> Result<()> {
        let text = format!("{:08x}\n", rand::random::<u32>()).into_bytes();
        let echoed = async {
            if !self.is_tcp {
                websocket::write(&mut self.stream, Kind::Text, &text, true).await?;
                let (kind, back) = websocket::read(&mut self.stream, false).await?;
                ensure!(kind == Kind::Text, "{kind:?} came back");
                return Ok(back);
            }
            self.stream.write_all(&text).await?;
            self.stream.flush().await?;
            let mut back = vec![0; text.len()];
            self.stream.read_exact(&mut back).await?;
            Ok(back)
        };
        let back = wait::within("an echo", wait::SOON, echoed).await??;
        ensure!(back == text, "other bytes came back");
        Ok(())
    }

    /// Waits until it is cut; gives how long that took. A good end is an error, where it can be told from a cut: hyper, at either end,
    /// has no reset for a stream of HTTP/2 that switched.
    pub async fn is_cut(&mut self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let end = wait::within("the cut", limit, self.stream.read(&mut [0; 64])).await?;
        match end {
            Ok(0) if self.is_http2 => Ok(start.elapsed()),
            Ok(0) => anyhow::bail!("it ended well"),
            Ok(more) => anyhow::bail!("{more} bytes came instead of the cut"),
            Err(_) => Ok(start.elapsed()),
        }
    }
}
