//! Takes a block of configuration as a page shows it, often a part of a file; gives the whole file that it is a part of, with
//! certificates and secrets where it says that they are, and the word of the real programs on it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use postern_tests::book::Block;
use postern_tests::pki::{CertFiles, Pki, write_private};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use toml::{Table, Value};

use super::run;

const RELAY: &str = r#"
version = 1
url = "https://relay.example.com"
listen = { https = "0.0.0.0:443", quic = "0.0.0.0:443" }
tls = { mode = "self-signed" }
state = { dir = "/var/lib/postern" }
agents = { trust_domain = "example.com" }

[[issuers]]
name = "corp"
issuer = "https://id.example.com/realms/corp"
audience = ["https://relay.example.com"]
login = { client_id = "postern-cli" }
"#;

const AGENT: &str = r#"
version = 1
relay = "relay.example.com"
state = "/var/lib/postern-agent"
"#;

pub(super) struct Frame {
    dir: PathBuf,
    ca: PathBuf,
    cert: CertFiles,
    jwks: PathBuf,
    secret: PathBuf,
}

impl Frame {
    pub(super) fn new(dir: &Path, pki: &Pki) -> Result<Self> {
        for folder in ["etc/services.d", "lib", "log", "run"] {
            std::fs::create_dir_all(dir.join(folder))?;
        }
        agents_authority(&dir.join("etc"))?;
        let cert = pki.server("book", &["relay.example.com", "*.example.com"])?;
        let (jwks, secret) = (dir.join("jwks.json"), dir.join("secret"));
        std::fs::write(&jwks, include_str!("jwks.json"))?;
        write_private(&secret, "secret\n")?;
        Ok(Self { dir: dir.to_owned(), ca: pki.ca_file(), cert, jwks, secret })
    }

    /// The text with this directory in the place of the machine's, and the files that it names.
    pub(super) fn at_home(&self, text: &str) -> Result<String> {
        for quoted in text.split('"').filter(|word| word.starts_with("/etc/postern/") && !word.contains('*'))
        {
            let to = self.dir.join("etc").join(quoted.trim_start_matches("/etc/postern/"));
            let name = to.file_name().context("no name")?.to_string_lossy().into_owned();
            std::fs::create_dir_all(to.parent().context("no folder")?)?;
            if to.exists() {
                continue;
            }
            let is_pem = to.extension().is_some_and(|ending| ending == "pem");
            let like = match &*name {
                name if is_pem && name.contains("key") => &self.cert.key,
                name if is_pem && name.contains("ca") => &self.ca,
                _ if is_pem => &self.cert.cert,
                name if name.contains("jwks") => &self.jwks,
                _ => &self.secret,
            };
            std::fs::copy(like, &to)?;
        }
        let dir = self.dir.display();
        Ok(text
            .replace("/etc/postern", &format!("{dir}/etc"))
            .replace("/var/lib", &format!("{dir}/lib"))
            .replace("/var/log/postern", &format!("{dir}/log")))
    }

    /// The block with what it leaves out; what it says comes first.
    pub(super) fn whole(&self, frame: &str, block: &Block) -> Result<Table> {
        let mut whole: Table = self.at_home(frame)?.parse()?;
        merge(&mut whole, self.at_home(&block.text)?.parse().with_context(|| block.place.clone())?);
        Ok(whole)
    }

    pub(super) fn relay(&self, block: &Block) -> Result<Table> {
        self.whole(RELAY, block)
    }

    pub(super) fn agent(&self, block: &Block) -> Result<Table> {
        self.whole(AGENT, block)
    }

    fn write(&self, name: &str, file: &Table) -> Result<PathBuf> {
        let path = self.dir.join("etc").join(name);
        std::fs::write(&path, toml::to_string(file)?)?;
        Ok(path)
    }

    pub(super) async fn check_relay(&self, block: &Block) -> Result<()> {
        let whole = self.relay(block)?;
        let tests = whole.get("tests").and_then(Value::as_array).map_or(0, Vec::len);
        let path = self.write("relay.toml", &whole)?;
        let checked = run("postern-relay", &path, &["config", "check"]).await?.expect_code(0)?;
        ensure!(tests == 0 || checked.stderr.contains(&format!("{tests} test(s) passed")), "{checked:?}");
        Ok(())
    }

    pub(super) async fn check_agent(&self, block: &Block) -> Result<()> {
        let path = self.write("agent.toml", &self.agent(block)?)?;
        run("postern-agent", &path, &["config", "check"]).await?.expect_code(0).map(drop)
    }

    /// As a file of its own, which the relay's configuration includes.
    pub(super) async fn check_services(&self, block: &Block) -> Result<()> {
        let included = self.dir.join("etc/services.d/block.toml");
        std::fs::write(&included, self.at_home(&block.text)?)?;
        let mut whole: Table = self.at_home(RELAY)?.parse()?;
        whole.insert("include".to_owned(), Value::Array(vec!["services.d/*.toml".into()]));
        let roles = "clerk = { any = \"group:finance\" }\nbilling-admin = { any = \"group:finance-leads\" }";
        whole.insert("roles".to_owned(), Value::Table(roles.parse()?));
        let path = self.write("relay.toml", &whole)?;
        let checked = run("postern-relay", &path, &["config", "check"]).await?.expect_code(0).map(drop);
        std::fs::remove_file(included)?;
        checked
    }

    /// Anybody may be asked about; what the answer is, is no matter.
    pub(super) async fn check_caller(&self, block: &Block) -> Result<()> {
        let mut whole: Table = self.at_home(RELAY)?.parse()?;
        let services = "[wiki]\nagent = \"dc1\"\nrules = [{ allow = \"group:finance\", to = \"GET /**\" }]";
        whole.insert("services".to_owned(), Value::Table(services.parse()?));
        let path = self.write("relay.toml", &whole)?;
        let caller = self.dir.join("caller.toml");
        std::fs::write(&caller, &block.text)?;
        let caller = caller.to_str().context("the directory's name is not text")?;
        let told = run("postern-relay", &path, &["policy", "why", "--as", caller, "GET", "wiki/"]).await?;
        ensure!(told.code == 0 || told.code == 5, "{told:?}");
        Ok(())
    }
}

/// An authority for agents' certificates, with what pages say it has made.
fn agents_authority(etc: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    let root = params.self_signed(&key)?.pem();
    std::fs::write(etc.join("agents-ca.pem"), &root)?;
    std::fs::write(etc.join("bundle-ca.pem"), &root)?;
    write_private(&etc.join("agents-ca-key.pem"), &key.serialize_pem())?;
    let issuer = Issuer::new(params, key);
    for (name, id, usage) in [
        ("relay", "relay/relay", ExtendedKeyUsagePurpose::ServerAuth),
        ("agent", "agent/dc1/01m80f3xmqy7gq8dwqxgsagdbs", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://example.com/{id}").try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        std::fs::write(etc.join(format!("{name}.pem")), params.signed_by(&key, &issuer)?.pem())?;
        write_private(&etc.join(format!("{name}-key.pem")), &key.serialize_pem())?;
    }
    Ok(())
}

/// Tables grow together; anything else of `over` takes the place of what was there.
pub(super) fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(more)) => merge(inner, more),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}
