//! Takes the number of cores; gives all that a measurement needs, running on loopback: nginx as backend (plain and TLS 1.3, and the
//! issuer's documents), relay, one enrolled agent, a token. All of it ends, and its directory goes, when the site is dropped.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use postern_tests::http::Http;
use postern_tests::pki::{CertFiles, Pki};
use postern_tests::process::{self, Output, Program, binary, command};
use postern_tests::wait;
use tempfile::TempDir;

use crate::issuer::Issuer;

/// The answer's body.
pub(crate) const BODY: usize = 1024;
/// What the measured token may do; the one rule asks for it.
const SCOPE: &str = "files:read";

pub(crate) struct Site {
    // Fields are dropped in this order: programs first, then their directory.
    pub(crate) agent: Program,
    pub(crate) relay: Program,
    _nginx: Vec<Program>,
    pub(crate) audit: AuditLines,
    /// Where the same answer is to be had: from nginx in plain text and over TLS, and from the relay.
    pub(crate) plain: String,
    pub(crate) tls: String,
    pub(crate) postern: String,
    /// A good token, and one without the scope.
    pub(crate) token: String,
    pub(crate) narrow: String,
    pub(crate) http: Http,
    dir: TempDir,
}

/// What the three configuration files are made of.
struct Facts<'a> {
    dir: &'a Path,
    relay: u16,
    plain: u16,
    tls: u16,
    cert: CertFiles,
}

impl Site {
    pub(crate) async fn start(cores: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("postern-bench-").tempdir()?;
        let pki = Pki::create(dir.path())?;
        let cert = pki.server("site", &[])?;
        let facts = Facts {
            dir: dir.path(),
            relay: wait::free_port()?,
            plain: wait::free_port()?,
            tls: wait::free_port()?,
            cert,
        };
        let issuer = Issuer::new(&facts.backend(), &facts.url())?;
        std::fs::create_dir_all(dir.path().join("html"))?;
        std::fs::write(dir.path().join("html/1k"), "x".repeat(BODY))?;
        issuer.publish(&dir.path().join("html"))?;
        std::fs::write(dir.path().join("relay.toml"), facts.relay_toml())?;
        std::fs::write(dir.path().join("agent.toml"), facts.agent_toml())?;
        let http = Http::h1(pki.roots()?)?;

        let nginx = facts.start_nginx(cores).await?;
        facts.run("postern-relay", &["init"]).await?;
        let relay = facts.start("postern-relay", &http).await?;
        let invite = facts.run("postern-relay", &["agent", "invite", "dc1"]).await?.stdout;
        std::fs::write(dir.path().join("invite"), invite.trim())?;
        let invite = dir.path().join("invite");
        let invite = invite.to_str().context("the directory's name is not text")?;
        facts.run("postern-agent", &["join", &facts.address(), "--invite-file", invite]).await?;
        let agent = facts.start("postern-agent", &http).await?;

        Ok(Self {
            agent,
            relay,
            _nginx: nginx,
            audit: AuditLines::open(&dir.path().join("audit.jsonl"))?,
            plain: format!("http://127.0.0.1:{}/1k", facts.plain),
            tls: format!("https://127.0.0.1:{}/1k", facts.tls),
            postern: format!("{}/files/1k", facts.url()),
            token: issuer.token(&format!("openid profile {SCOPE}"))?,
            narrow: issuer.token("openid profile")?,
            http,
            dir,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Facts<'_> {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.relay)
    }

    fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    fn backend(&self) -> String {
        format!("http://127.0.0.1:{}", self.plain)
    }

    fn command(&self, program: &str, args: &[&str]) -> Result<std::process::Command> {
        let file = program.replace("postern-", "") + ".toml";
        let mut command = command(binary(program)?, ["-c"]);
        command.arg(self.dir.join(file)).args(args).env_remove("POSTERN_LOG");
        Ok(command)
    }

    /// Runs a command to its end.
    async fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        process::run(self.command(program, args)?, Duration::from_secs(30)).await?.expect_code(0)
    }

    /// Starts relay or agent and waits until it is ready.
    async fn start(&self, program: &str, http: &Http) -> Result<Program> {
        let log = self.dir.join(format!("{program}.log"));
        let mut started = Program::start(program, self.command(program, &["run"])?, &log)?;
        let metrics = started.wait_value("listening metrics=").await?;
        wait_ok(&format!("http://{metrics}/readyz"), http).await.with_context(|| started.tail())?;
        Ok(started)
    }

    /// One process per core, all on the same ports: a master would leave its workers behind when it is killed.
    async fn start_nginx(&self, cores: usize) -> Result<Vec<Program>> {
        // Debian puts it in /usr/sbin, which is not on everyone's path.
        let binary = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        let mut all = Vec::new();
        for index in 0..cores {
            let config = self.dir.join(format!("nginx-{index}.conf"));
            std::fs::write(&config, self.nginx_conf(index))?;
            let args = ["-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), config.as_os_str()];
            let log = self.dir.join(format!("nginx-{index}.log"));
            let mut program = Program::start("nginx", command(binary, args), &log)?;
            // Written when its sockets listen. A connection could not tell: any of the processes may take it.
            let pid = self.dir.join(format!("nginx-{index}.pid"));
            wait::until("nginx listens", wait::SOON, async || {
                (pid.exists() || !program.is_running()).then_some(())
            })
            .await?;
            anyhow::ensure!(program.is_running(), "nginx ended: {}", program.tail());
            all.push(program);
        }
        Ok(all)
    }

    fn nginx_conf(&self, index: usize) -> String {
        let Self { dir, plain, tls, cert, .. } = self;
        let dir = dir.display();
        // Root's nginx would otherwise read the files as nobody.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        format!(
            "daemon off;
master_process off;
{user}
pid {dir}/nginx-{index}.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 300s;
    server {{
        listen 127.0.0.1:{plain} reuseport;
        listen 127.0.0.1:{tls} ssl reuseport;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        root {dir}/html;
        default_type application/json;
        location = /1k {{ default_type application/octet-stream; }}
    }}
}}
",
            cert = cert.cert.display(),
            key = cert.key.display(),
        )
    }

    fn relay_toml(&self) -> String {
        let (dir, url, address, iss) = (self.dir.display(), self.url(), self.address(), self.backend());
        format!(
            r#"version = 1
url = "{url}"

[listen]
https = "{address}"
quic = "{address}"
metrics = "127.0.0.1:0"

[tls]
mode = "files"
cert = "{cert}"
key = "{key}"

[state]
dir = "{dir}/relay"

[agents]
trust_domain = "example.com"

[[issuers]]
name = "corp"
issuer = "{iss}"
audience = ["{url}"]

[roles]
clerk = {{ any = ["group:finance"] }}

[services.files]
agent = "dc1"

[[services.files.rules]]
name = "clerks read files"
allow = "role:clerk"
to = "GET /**"
with = {{ scope = "{SCOPE}" }}

[[rules]]
name = "nobody reaches debug pages"
deny = "*"
to = "* /debug/**"

[audit]
file = "{dir}/audit.jsonl"
"#,
            cert = self.cert.cert.display(),
            key = self.cert.key.display(),
        )
    }

    fn agent_toml(&self) -> String {
        format!(
            r#"version = 1
relay = "{address}"
state = "{dir}/agent"

[services.files]
upstream = "{backend}"

[telemetry]
metrics = "127.0.0.1:0"
"#,
            address = self.address(),
            dir = self.dir.display(),
            backend = self.backend(),
        )
    }
}

/// Waits until `url` answers 200.
async fn wait_ok(url: &str, http: &Http) -> Result<()> {
    wait::until(&format!("{url} answers 200"), wait::SOON, async || {
        http.get(url, None).await.ok().filter(|answer| answer.status == 200).map(drop)
    })
    .await
}

/// Counts the relay's audit lines, and empties the file between measurements: at full speed it grows by some 30 MB a second.
pub(crate) struct AuditLines {
    file: File,
    lines: usize,
}

impl AuditLines {
    fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, lines: 0 })
    }

    /// Waits until there are at least `count` lines.
    pub(crate) async fn wait(&mut self, count: usize) -> Result<()> {
        let mut buffer = vec![0; 256 * 1024];
        let found = wait::until("audit lines", wait::SOON, async || {
            while let Ok(read @ 1..) = self.file.read(&mut buffer) {
                self.lines += buffer[..read].split(|byte| *byte == b'\n').skip(1).count();
            }
            (self.lines >= count).then_some(())
        })
        .await;
        found.with_context(|| format!("{count} audit lines were expected, {} came", self.lines))
    }

    /// Empties the file; the relay appends, so it goes on from the start.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.lines = 0;
        Ok(())
    }
}
