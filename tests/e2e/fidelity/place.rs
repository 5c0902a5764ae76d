//! Takes a link and an area; gives Postern at work over that link, with the upstreams of others that the area needs behind it, and
//! callers of others in front. Refuses to say "TCP" of a tunnel that is QUIC.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::process::{self, Output};
use postern_tests::stacks::{self, Stack};
use postern_tests::stand::{Extra, Stand};
use postern_tests::wait;
use serde_json::{Value, json};

use super::{Area, Link, Protocol};

/// How late anything that should pass at once may be, in milliseconds.
const AT_ONCE: f64 = 100.0;
const LIMIT: Duration = Duration::from_secs(40);

/// Hosts of services: Node's servers, Python's, and nginx.
pub(super) const NODE: &str = "node.example.com";
pub(super) const NODE_H2C: &str = "node-h2c.example.com";
pub(super) const SOCKETS: &str = "sockets.example.com";
pub(super) const GRPC: &str = "grpc.example.com";
pub(super) const NGINX: &str = "nginx.example.com";

/// Everything a row needs.
pub(super) struct Place {
    pub(super) stand: Stand,
    token: String,
    node: Option<Stack>,
    python: Option<Stack>,
    cases: u32,
}

impl Place {
    pub(super) async fn start(area: Area, link: Link) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let node = match area {
            Area::Grpc => None,
            Area::Messages | Area::Live | Area::WebSocket | Area::Bulk => {
                Some(Stack::start(dir.path(), "upstream.mjs").await?)
            }
        };
        let python = match area {
            Area::WebSocket => Some("upstream_ws.py"),
            Area::Grpc => Some("upstream_grpc.py"),
            Area::Messages | Area::Live | Area::Bulk => None,
        };
        let python = match python {
            Some(script) => Some(Stack::start(dir.path(), script).await?),
            None => None,
        };
        let mut services = vec![(NGINX, "{nginx}".to_owned())];
        if let Some(node) = &node {
            services.push((NODE, format!("http://{}", node.address("http")?)));
            services.push((NODE_H2C, format!("h2c://{}", node.address("h2c")?)));
        }
        if let Some(python) = &python {
            let (host, scheme) = if area == Area::Grpc { (GRPC, "h2c") } else { (SOCKETS, "http") };
            services.push((host, format!("{scheme}://{}", python.address("http")?)));
        }
        let mut extra = Extra {
            limits: "headers = \"96KiB\"\nfields = 300\n".to_owned(),
            agent_tables: format!("[tunnel]\ntransport = \"{}\"\n", link.transport()),
            ..Extra::default()
        };
        for (host, upstream) in services {
            let name = host.trim_end_matches(".example.com");
            let rules = "rules = [{ allow = \"*\", to = \"* /**\" }]";
            let _ =
                writeln!(extra.tables, "[services.{name}]\nagent = \"dc1\"\nhosts = [\"{host}\"]\n{rules}");
            let _ = writeln!(extra.agent_tables, "[services.{name}]\nupstream = \"{upstream}\"");
        }
        let mut stand = Stand::start_with(extra).await?;
        if area == Area::Bulk {
            stand.issuer.access_ttl(Duration::from_hours(1)).await?;
        }
        let token = stand.issuer.token("ada").await?;
        stand.relay()?.wait_line("tunnel open", wait::SOON).await?;
        Ok(Self { stand, token, node, python, cases: 0 })
    }

    /// Refuses a link other than the one that was asked for, whenever it opened.
    pub(super) fn only_over(&mut self, link: Link) -> Result<()> {
        let log = self.stand.relay()?.log_text();
        let expected = format!(" link={} ", link.transport());
        let other = log.lines().find(|line| line.contains("tunnel open") && !line.contains(&expected));
        ensure!(other.is_none(), "a tunnel that is not over {}: {other:?}", link.name());
        Ok(())
    }

    /// The upstream's base URL as a caller writes it.
    pub(super) fn at(&self, host: &str) -> String {
        format!("https://{host}:{}", self.stand.port)
    }

    /// A name for what one caller does, under which the upstream notes it.
    pub(super) fn case(&mut self) -> String {
        self.cases += 1;
        format!("case-{}", self.cases)
    }

    fn upstream(&self, host: &str) -> Result<&Stack> {
        let stack = if [SOCKETS, GRPC].contains(&host) { &self.python } else { &self.node };
        stack.as_ref().with_context(|| format!("{host} was not started"))
    }

    /// What the upstream noted under a case.
    pub(super) async fn seen(&self, host: &str, case: &str) -> Result<Value> {
        self.upstream(host)?.seen(&self.stand.http, case).await
    }

    /// Runs a caller of others; gives its report and the case. `job` adds to, or replaces, what every job has.
    pub(super) async fn call(
        &mut self,
        script: &str,
        protocol: Protocol,
        host: &str,
        job: Value,
    ) -> Result<(Value, String)> {
        self.call_patiently(script, protocol, host, job, LIMIT).await
    }

    /// The same for what takes long.
    pub(super) async fn call_patiently(
        &mut self,
        script: &str,
        protocol: Protocol,
        host: &str,
        job: Value,
        limit: Duration,
    ) -> Result<(Value, String)> {
        let case = self.case();
        let mut whole = json!({
            "protocol": protocol.short(),
            "base": self.at(host),
            "ca": self.stand.pki.ca_file(),
            "token": self.token,
            "id": case,
            // gRPC has no control port: it is asked by a call.
            "control": self.upstream(host)?.address("control").unwrap_or_default(),
        });
        let what = format!("{script} to {host}: {job}");
        for (key, value) in job.as_object().context("a job is an object")? {
            whole[key] = value.clone();
        }
        let report = stacks::call(script, &whole, limit).await.with_context(|| {
            let stacks = self.node.iter().chain(&self.python).map(Stack::tail).collect::<Vec<_>>();
            format!("{what}\n{}", stacks.join("\n"))
        })?;
        Ok((report, case))
    }

    /// Runs curl, with the token unless told otherwise, with `args` and what it reads on its standard input.
    pub(super) async fn curl(&self, protocol: Protocol, case: &str, args: &[&str]) -> Result<Output> {
        let authorization = format!("Authorization: Bearer {}", self.token);
        let args = [&["-H", authorization.as_str()], args].concat();
        self.curl_without_token(protocol, case, &args).await
    }

    pub(super) async fn curl_without_token(
        &self,
        protocol: Protocol,
        case: &str,
        args: &[&str],
    ) -> Result<Output> {
        let version = match protocol {
            Protocol::Http1 => "--http1.1",
            Protocol::Http2 => "--http2",
        };
        let (ca, port) = (self.stand.pki.ca_file(), self.stand.port);
        // Through a shell for its pipe: an upload from there has no known length.
        let mut command = process::command("sh", ["-c", "cat \"$UPLOAD\" | exec curl \"$@\"", "curl"]);
        command
            .env("UPLOAD", self.upload())
            .args(["-sS", version, "--noproxy", "*", "--connect-to"])
            .arg(format!("::127.0.0.1:{port}"))
            .arg("--cacert")
            .arg(ca)
            .args(["-H", &format!("X-Case: {case}")])
            .args(args);
        process::run(command, LIMIT).await
    }

    /// Runs nghttp with the token.
    pub(super) async fn nghttp(&self, host: &str, case: &str, path: &str, args: &[&str]) -> Result<Output> {
        // It looks names up and verifies nothing: the address is loopback's, the name goes where others read it.
        let mut command = process::command("nghttp", ["-v", "--no-verify-peer"]);
        command
            .args(["-H", &format!("authorization: Bearer {}", self.token)])
            .args(["-H", &format!("x-case: {case}")])
            .args(["-H", &format!(":authority: {host}")])
            .args(args)
            .arg(format!("https://127.0.0.1:{}{path}", self.stand.port));
        process::run(command, LIMIT).await
    }

    /// A file of 3,000,000 bytes to upload; nginx serves it as `/files/upload`.
    pub(super) fn upload(&self) -> std::path::PathBuf {
        let path = self.stand.path("nginx/html/files/upload");
        if !path.exists() {
            let bytes: Vec<u8> = (0..3_000_000u32).map(|i| u8::try_from(i * 7 % 251).unwrap_or(0)).collect();
            // A test that needs the file and does not find it says so.
            let _ = std::fs::write(&path, bytes);
        }
        path
    }

    /// Peak resident memory of relay and agent, in bytes.
    pub(super) fn peaks(&mut self) -> Result<[u64; 2]> {
        Ok([self.stand.relay()?.memory()?.peak, self.stand.agent()?.memory()?.peak])
    }
}

/// The values of one field, in order.
pub(super) fn values<'a>(fields: &'a Value, name: &str) -> Vec<&'a str> {
    let pairs = fields.as_array().into_iter().flatten();
    pairs.filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect()
}

/// Something came, but not at once.
#[derive(Debug)]
pub(super) struct Late(String);

impl std::fmt::Display for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Late {}

/// Every number of a list is below [`AT_ONCE`], and there are `count`.
pub(super) fn all_at_once(what: &str, list: &Value, count: usize) -> Result<()> {
    let list: Vec<f64> = list.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    ensure!(list.len() == count, "{what}: {} of {count} came", list.len());
    let worst = list.iter().copied().fold(0.0, f64::max);
    if worst < AT_ONCE {
        Ok(())
    } else {
        Err(Late(format!("{what}: {worst:.0} ms late, of {list:?}")).into())
    }
}

/// The one number is below [`AT_ONCE`].
pub(super) fn at_once(what: &str, number: &Value) -> Result<()> {
    all_at_once(what, &json!([number]), 1)
}
