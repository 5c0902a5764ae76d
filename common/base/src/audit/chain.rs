//! The chain of an audit log: takes lines; gives each a sequence number and a proof (`mac`) under a key that ratchets forward line by
//! line. Whoever holds the first key can verify all of it; whoever takes the key of now can forge nothing that was written before.
//!
//! With `d(n) = SHA-256(text(n))`, where `text` is the line up to its `mac`: `mac(n) = HMAC-SHA-256(key(n), mac(n-1) || d(n))` and
//! `key(n+1) = SHA-256(key(n))`. So each line is proved by the one before it. `head(n) = SHA-256(head(n-1) || d(n) || mac(n))` names
//! everything up to a line without any key: agents are given heads to hold.

use std::fmt;

use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

mod kept;

pub use kept::{Chain, ChainError};

/// What a first key begins with, so that it is known for what it is.
const KEY_PREFIX: &str = "pak1_";
const SEQUENCE: &[u8] = b"{\"seq\":";
const MAC: &[u8] = b",\"mac\":\"";
/// 32 bytes in base64url.
const DIGEST_CHARS: usize = 43;

/// What a chain has come to: it names every line so far.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head(pub [u8; 32]);

impl Head {
    fn after(self, digest: &[u8], mac: &Mac) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&self.0);
        context.update(digest);
        context.update(&mac.0);
        Self(to_array(context.finish().as_ref()))
    }

    pub fn parse(text: &str) -> Option<Self> {
        decode(text.as_bytes()).map(Self)
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What proves a line to whoever has its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac([u8; 32]);

/// Where a chain stands behind a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub head: Head,
    pub mac: Mac,
}

impl Mark {
    /// Of a chain without a line.
    pub const START: Self = Self { head: Head([0; 32]), mac: Mac([0; 32]) };

    /// As lines have it that tell where the chain stood before them: head and mac in one text.
    pub fn parse(text: &str) -> Option<Self> {
        let (head, mac) = text.split_once('.')?;
        Some(Self { head: Head::parse(head)?, mac: Mac(decode(mac.as_bytes())?) })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.head, URL_SAFE_NO_PAD.encode(self.mac.0))
    }
}

fn to_array(bytes: &[u8]) -> [u8; 32] {
    let mut array = [0; 32];
    array.copy_from_slice(bytes);
    array
}

fn decode(text: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let length = URL_SAFE_NO_PAD.decode_slice_unchecked(text, &mut bytes).ok()?;
    (text.len() == DIGEST_CHARS && length == 32).then_some(bytes)
}

/// A key of the chain. Debug shows nothing.
#[derive(Clone)]
pub struct ChainKey(Zeroizing<[u8; 32]>);

impl ChainKey {
    fn random() -> Self {
        Self(Zeroizing::new(rand::random()))
    }

    /// For whoever is to verify the log, once.
    pub fn expose(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{KEY_PREFIX}{}", URL_SAFE_NO_PAD.encode(*self.0)))
    }

    pub fn parse(text: &str) -> Option<Self> {
        decode(text.trim().strip_prefix(KEY_PREFIX)?.as_bytes()).map(|key| Self(Zeroizing::new(key)))
    }

    /// The next line's key; this one is gone.
    pub fn ratchet(&mut self) {
        self.0 = Zeroizing::new(to_array(digest::digest(&digest::SHA256, &*self.0).as_ref()));
    }

    /// The HMAC over what is in front of a line and the line.
    fn over(&self, before: Mac, digest: &[u8]) -> Mac {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &*self.0));
        context.update(&before.0);
        context.update(digest);
        Mac(to_array(context.sign().as_ref()))
    }
}

impl fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChainKey(…)")
    }
}

/// A line as it stands in a file, taken apart.
#[derive(Debug, Clone, Copy)]
pub struct Sealed<'a> {
    pub sequence: u64,
    pub mac: Mac,
    text: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// `None` for what no chain has written.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let digits = line.strip_prefix(SEQUENCE)?;
        let digits = &digits[..digits.iter().position(|byte| *byte == b',')?];
        let sequence: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
        let (text, proof) = line.split_at_checked(line.len().checked_sub(MAC.len() + DIGEST_CHARS + 2)?)?;
        let mac = Mac(decode(proof.strip_prefix(MAC)?.strip_suffix(b"\"}")?)?);
        // One number has one spelling.
        (sequence > 0 && digits.len() == sequence.to_string().len()).then_some(Self { sequence, mac, text })
    }

    fn digest(&self) -> digest::Digest {
        digest::digest(&digest::SHA256, self.text)
    }

    /// The head behind this line, if `before` is the one in front of it.
    pub fn head(&self, before: Head) -> Head {
        before.after(self.digest().as_ref(), &self.mac)
    }

    /// Whether this line was written with this key, behind a line with this mac.
    pub fn is_proved_by(&self, key: &ChainKey, before: Mac) -> bool {
        let expected = key.over(before, self.digest().as_ref());
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected.0, &self.mac.0).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_chain_wrote_is_not_taken_apart() {
        let mac = "A".repeat(43);
        let good = format!("{{\"seq\":12,\"a\":1,\"mac\":\"{mac}\"}}");
        assert_eq!(Sealed::parse(good.as_bytes()).unwrap().sequence, 12);
        for bad in [
            String::new(),
            "{}".into(),
            good.replace("12", "012"),
            good.replace("12", "0"),
            good.replace("12", "+12"),
            good.replace("mac", "mca"),
            good.replace('A', "+"),
            good[1..].to_owned(),
            format!("{good} "),
        ] {
            assert!(Sealed::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
