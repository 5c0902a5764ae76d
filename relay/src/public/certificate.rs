//! The public certificate: takes PEM files, gives two TLS configurations, of which one asks callers for a certificate of theirs; a changed
//! file is used at once, a bad one is refused and the old one stays.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest;
use postern_base::sync::lock;
use postern_wire::tls::{self, Identity, provider};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;

mod client;

/// What callers see in TLS 1.3 and 1.2, with HTTP/2 and HTTP/1.1 by ALPN.
#[derive(Debug)]
pub struct PublicCertificate {
    cert: PathBuf,
    key: PathBuf,
    identity: Arc<Identity>,
    config: Arc<ServerConfig>,
    asking: Arc<ServerConfig>,
    /// The hash of what is in use, to tell a change from a touch.
    loaded: Mutex<Hash>,
}

type Pair = (Vec<u8>, Vec<u8>);
type Hash = [u8; 32];

fn hash(pair: &Pair) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&pair.0);
    context.update(&pair.1);
    context.finish().as_ref().try_into().unwrap_or_default()
}

fn read(cert: &Path, key: &Path) -> Result<Pair, String> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    Ok((read(cert)?, read(key)?))
}

fn parse(
    cert: &Path,
    key: &Path,
    pair: &Pair,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pair.0)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{}: {e}", cert.display()))?;
    if chain.is_empty() {
        return Err(format!("{}: no certificate in it", cert.display()));
    }
    let key = PrivateKeyDer::from_pem_slice(&pair.1).map_err(|e| format!("{}: {e}", key.display()))?;
    Ok((chain, key))
}

impl PublicCertificate {
    pub fn load(cert: &Path, key: &Path) -> Result<Self, String> {
        let pair = read(cert, key)?;
        let (chain, private) = parse(cert, key, &pair)?;
        let identity = Identity::new(chain, private).map_err(|e| format!("{}: {e}", cert.display()))?;
        let identity = Arc::new(identity);
        let builder = || {
            let builder = ServerConfig::builder_with_provider(provider());
            builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())
        };
        let mut config = builder()?.with_no_client_auth().with_cert_resolver(identity.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut asking = builder()?
            .with_client_cert_verifier(Arc::new(client::Possession::default()))
            .with_cert_resolver(identity.clone());
        asking.alpn_protocols.clone_from(&config.alpn_protocols);
        // A resumed session would bring a certificate whose key nobody proved in that handshake.
        asking.send_tls13_tickets = 0;
        asking.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            cert: cert.to_owned(),
            key: key.to_owned(),
            identity,
            config: Arc::new(config),
            asking: Arc::new(asking),
            loaded: Mutex::new(hash(&pair)),
        })
    }

    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// For the hosts where callers may show a certificate that their tokens are bound to.
    pub fn asking(&self) -> Arc<ServerConfig> {
        self.asking.clone()
    }

    /// When what callers see stops being valid, in seconds since the epoch.
    pub fn ends(&self) -> Option<u64> {
        let chain = self.identity.chain();
        tls::not_after(chain.first()?).ok().and_then(|ends| u64::try_from(ends).ok())
    }

    /// Looks at the files again; says whether they changed.
    pub fn refresh(&self) -> Result<bool, String> {
        let pair = read(&self.cert, &self.key)?;
        let mut loaded = lock(&self.loaded);
        if *loaded == hash(&pair) {
            return Ok(false);
        }
        // Certificate and key are two files: between the two renames they do not match, and the next look finds them whole.
        let (chain, private) = parse(&self.cert, &self.key, &pair)?;
        self.identity.replace(chain, private).map_err(|e| format!("{}: {e}", self.cert.display()))?;
        *loaded = hash(&pair);
        Ok(true)
    }
}
