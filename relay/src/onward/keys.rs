//! The keys of the assertion: takes a directory and the time; gives the key that signs now and the set to be published; refuses a
//! directory that it cannot use. A key is published before it signs and after it has stopped, and signs nothing else.
//!
//! One file for each key, named after the second from which it signs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use postern_base::clock::seconds;
use postern_base::file::{self, Access};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// What was signed by a stolen key is soon worth nothing, and no service has to fetch keys daily.
const SIGNS_FOR: Duration = Duration::from_hours(30 * 24);
/// Services that fetch the keys but once a day know the next one in time.
const PUBLISHED_BEFORE: Duration = Duration::from_hours(2 * 24);
/// What it signed last lives for minutes; the rest is for clocks that are wrong.
const PUBLISHED_AFTER: Duration = Duration::from_hours(24);
const ENDING: &str = "pem";

/// Why there are no keys to sign with.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} is not a key of ours: {reason}; move it away and start the relay again, which makes a new one"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("no key for assertions could be made: {0}")]
    Making(#[from] rcgen::Error),
}

/// One key, at whichever part of its life.
#[derive(Debug)]
pub struct Key {
    pair: EcdsaKeyPair,
    /// The JWT's header, encoded.
    pub header: String,
    jwk: Value,
    /// Seconds since the epoch.
    signs_from: u64,
}

impl Key {
    fn new(pair: EcdsaKeyPair, signs_from: u64) -> Self {
        let point = pair.public_key().as_ref();
        // An uncompressed point: a byte that says so, then both coordinates.
        let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len() / 2);
        let (x, y) = (BASE64.encode(x), BASE64.encode(y));
        // RFC 7638: the members in this order, without blanks.
        let thumbprint = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let kid = BASE64.encode(digest(&SHA256, thumbprint.as_bytes()));
        let header = json!({ "alg": "ES256", "typ": "postern-assertion+jwt", "kid": kid });
        let jwk =
            json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid, "x": x, "y": y });
        Self { pair, header: BASE64.encode(header.to_string()), jwk, signs_from }
    }

    /// Encoded as a JWT has it (RFC 7518, 3.4); nothing where there is no randomness.
    pub fn sign(&self, message: &[u8]) -> Option<String> {
        let signature = self.pair.sign(&SystemRandom::new(), message).ok()?;
        Some(BASE64.encode(signature))
    }

    fn path(dir: &Path, signs_from: u64) -> PathBuf {
        dir.join(signs_from.to_string()).with_extension(ENDING)
    }
}

/// What is in use: exchanged as a whole.
#[derive(Debug)]
struct Held {
    /// Oldest first; never empty.
    keys: Vec<Arc<Key>>,
    published: Bytes,
}

impl Held {
    fn new(keys: Vec<Arc<Key>>) -> Self {
        let jwks: Vec<&Value> = keys.iter().map(|key| &key.jwk).collect();
        let published = json!({ "keys": jwks }).to_string().into();
        Self { keys, published }
    }
}

/// The keys of one relay.
#[derive(Debug)]
pub struct Keys {
    dir: PathBuf,
    held: ArcSwap<Held>,
}

impl Keys {
    pub fn open(dir: &Path, now: SystemTime) -> Result<Self, KeysError> {
        file::create_private_dir(dir).map_err(|source| KeysError::Io { path: dir.to_owned(), source })?;
        let keys = Self { dir: dir.to_owned(), held: ArcSwap::from_pointee(Held::new(read_all(dir)?)) };
        keys.rotate(now)?;
        Ok(keys)
    }

    /// The JWK set (RFC 7517) that services check assertions with.
    pub fn published(&self) -> Bytes {
        self.held.load().published.clone()
    }

    /// The key that signs at `now`.
    pub fn signer(&self, now: SystemTime) -> Option<Arc<Key>> {
        let held = self.held.load();
        let signs = |key: &&Arc<Key>| key.signs_from <= seconds(now);
        // A clock that was set back finds no key that signs yet.
        held.keys.iter().rfind(signs).or(held.keys.first()).cloned()
    }

    /// Makes the next key when it is due, and forgets what has not signed for long. To be called now and then; says whether anything changed.
    pub fn rotate(&self, now: SystemTime) -> Result<bool, KeysError> {
        let now = seconds(now);
        let mut keys = self.held.load().keys.clone();
        let next = match keys.last() {
            None => Some(now),
            Some(last) => {
                let ends = last.signs_from + SIGNS_FOR.as_secs();
                // Where the relay was off for long, the old key signs on until the new one can be known.
                let due = now + PUBLISHED_BEFORE.as_secs() >= ends;
                due.then(|| ends.max(now + PUBLISHED_BEFORE.as_secs()))
            }
        };
        if let Some(signs_from) = next {
            keys.push(Arc::new(self.make(signs_from)?));
        }
        let follows = keys.iter().skip(1).map(|key| key.signs_from + PUBLISHED_AFTER.as_secs());
        let past = follows.take_while(|ends| *ends <= now).count();
        for key in keys.drain(..past) {
            let path = Key::path(&self.dir, key.signs_from);
            std::fs::remove_file(&path).map_err(|source| KeysError::Io { path, source })?;
        }
        let changed = next.is_some() || past > 0;
        if changed {
            self.held.store(Arc::new(Held::new(keys)));
        }
        Ok(changed)
    }

    fn make(&self, signs_from: u64) -> Result<Key, KeysError> {
        let path = Key::path(&self.dir, signs_from);
        let made = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let pem = Zeroizing::new(made.serialize_pem());
        file::write_atomic(&path, pem.as_bytes(), Access::Private)
            .map_err(|source| KeysError::Io { path: path.clone(), source })?;
        parse(&path, &pem, signs_from)
    }
}

fn read_all(dir: &Path) -> Result<Vec<Arc<Key>>, KeysError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| KeysError::Io { path, source }
    };
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        let Some(signs_from) = number.filter(|_| path.extension().is_some_and(|ending| ending == ENDING))
        else {
            continue;
        };
        file::check_private(&path).map_err(failed(&path))?;
        let pem = Zeroizing::new(std::fs::read_to_string(&path).map_err(failed(&path))?);
        keys.push(Arc::new(parse(&path, &pem, signs_from)?));
    }
    keys.sort_by_key(|key| key.signs_from);
    Ok(keys)
}

fn parse(path: &Path, pem: &str, signs_from: u64) -> Result<Key, KeysError> {
    let damaged = |reason: String| KeysError::Damaged { path: path.to_owned(), reason };
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(e.to_string()))?;
    let der = Zeroizing::new(der.secret_pkcs8_der().to_vec());
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der);
    Ok(Key::new(pair.map_err(|e| damaged(e.to_string()))?, signs_from))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn kids(keys: &Keys) -> Vec<String> {
        let set: Value = serde_json::from_slice(&keys.published()).unwrap();
        set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    }

    fn signer(keys: &Keys, now: SystemTime) -> String {
        keys.signer(now).unwrap().jwk["kid"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_key_is_published_before_it_signs_and_after_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let day = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_hours(24 * (20_000 + n));
        let keys = Keys::open(dir.path(), day(0)).unwrap();
        let first = signer(&keys, day(0));
        assert_eq!(kids(&keys), std::slice::from_ref(&first));
        assert!(!keys.rotate(day(27)).unwrap());

        assert!(keys.rotate(day(28)).unwrap());
        let both = kids(&keys);
        assert_eq!((both.len(), &both[0]), (2, &first));
        assert_eq!(signer(&keys, day(29)), first, "the next one is published and does not sign");
        assert_eq!(signer(&keys, day(30)), both[1]);
        assert!(!keys.rotate(day(30)).unwrap(), "the last one is still published");
        assert!(keys.rotate(day(31)).unwrap());
        assert_eq!(kids(&keys), both[1..]);

        let again = Keys::open(dir.path(), day(32)).unwrap();
        assert_eq!(kids(&again), both[1..], "a restart keeps what there is");
        let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn after_a_long_sleep_the_old_key_signs_until_the_new_one_can_be_known() {
        let dir = tempfile::tempdir().unwrap();
        let day = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_hours(24 * (20_000 + n));
        let first = signer(&Keys::open(dir.path(), day(0)).unwrap(), day(0));
        let keys = Keys::open(dir.path(), day(100)).unwrap();
        assert_eq!(signer(&keys, day(100)), first);
        assert_eq!(signer(&keys, day(102)), kids(&keys)[1]);
    }

    #[test]
    fn a_damaged_or_open_file_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.pem");
        file::write_atomic(&path, b"nonsense", Access::Private).unwrap();
        assert!(matches!(Keys::open(dir.path(), SystemTime::now()), Err(KeysError::Damaged { .. })));
        file::write_atomic(&path, b"nonsense", Access::Public).unwrap();
        assert!(matches!(Keys::open(dir.path(), SystemTime::now()), Err(KeysError::Io { .. })));
    }
}
