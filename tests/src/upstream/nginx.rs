//! Takes a directory; gives a running nginx with an invoice API of sorts, and its access log as JSON: one line per request, with
//! every field that Postern adds or must remove.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::process::{Program, command};
use crate::wait;

/// `Authorization` and the spoofed kinds are here to prove that they do not arrive.
const LOGGED: &[(&str, &str)] = &[
    ("method", "$request_method"),
    ("uri", "$request_uri"),
    ("decoded", "$uri"),
    ("protocol", "$server_protocol"),
    ("host", "$http_host"),
    ("status", "$status"),
    ("sent", "$bytes_sent"),
    ("request_length", "$request_length"),
    ("authorization", "$http_authorization"),
    ("cookie", "$http_cookie"),
    ("request_id", "$http_x_request_id"),
    ("traceparent", "$http_traceparent"),
    ("forwarded", "$http_forwarded"),
    ("forwarded_for", "$http_x_forwarded_for"),
    ("subject", "$http_x_postern_subject"),
    ("issuer", "$http_x_postern_issuer"),
    ("client", "$http_x_postern_client"),
    ("scopes", "$http_x_postern_scopes"),
    ("roles", "$http_x_postern_roles"),
];

/// A running nginx on plain HTTP.
pub struct Nginx {
    pub port: u16,
    dir: PathBuf,
    _program: Program,
}

impl Nginx {
    pub async fn start(dir: &Path) -> Result<Self> {
        let dir = dir.join("nginx");
        std::fs::create_dir_all(dir.join("html/files"))?;
        std::fs::write(dir.join("html/files/1k"), "x".repeat(1024))?;
        let port = wait::free_port()?;
        let server = format!(
            r#"server {{
        listen 127.0.0.1:{port};
        root {dir}/html;
        default_type application/json;
        location /files/ {{ default_type application/octet-stream; }}
        location / {{ return 200 '{{"from":"nginx","method":"$request_method","uri":"$request_uri"}}\n'; }}
    }}"#,
            dir = dir.display()
        );
        std::fs::write(dir.join("nginx.conf"), config(&dir, LOGGED, &server))?;
        let program = run(&dir, port).await?;
        Ok(Self { port, dir, _program: program })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The access log so far, oldest first.
    pub fn seen(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the request whose URI is `uri`: nginx writes its line when the request has ended.
    pub async fn wait_seen(&self, uri: &str) -> Result<Value> {
        wait::until(&format!("nginx logs {uri}"), Duration::from_secs(10), async || {
            self.seen().into_iter().rfind(|line| line["uri"] == uri)
        })
        .await
    }
}

/// Runs nginx with `dir/nginx.conf` until it listens on `port`.
pub(super) async fn run(dir: &Path, port: u16) -> Result<Program> {
    // Debian puts it in /usr/sbin, which is not on everyone's path.
    let binary = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    let config = dir.join("nginx.conf");
    let args =
        ["-e".as_ref(), "stderr".as_ref(), "-p".as_ref(), dir.as_os_str(), "-c".as_ref(), config.as_os_str()];
    let mut program = Program::start("nginx", command(binary, args), &dir.join("nginx.log"))?;
    wait::until("nginx listens", wait::SOON, async || {
        let up = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        (up || !program.is_running()).then_some(())
    })
    .await?;
    anyhow::ensure!(program.is_running(), "nginx ended: {}", program.tail());
    Ok(program)
}

/// A configuration for tests: everything in `dir`, and an access log of JSON lines with these fields.
pub(super) fn config(dir: &Path, logged: &[(&str, &str)], servers: &str) -> String {
    let fields: Vec<String> = logged.iter().map(|(name, value)| format!("\"{name}\":\"{value}\"")).collect();
    let dir = dir.display();
    // One process, so that nothing is left when it is killed. Root's nginx would otherwise read the files as nobody.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    format!(
        r"daemon off;
master_process off;
worker_processes 1;
{user}
pid {dir}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
    log_format seen escape=json '{{{fields}}}';
    access_log {dir}/access.log seen;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    client_max_body_size 0;
    keepalive_requests 1000000;
    underscores_in_headers on;
    {servers}
}}
",
        fields = fields.join(",")
    )
}
