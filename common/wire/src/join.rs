//! Enrolment and recovery: one question and one answer on the first stream of a `postern-join/1` connection, and the invite that starts it.
//!
//! An invite reads `pst1.<pin>.<secret>`: the pin is the SHA-256 of the root's public key info, the secret 128 bits or more, both
//! base64url. The agent sends the secret only after the relay's chain was proved to end in the pinned root. Once the authority was replaced
//! it reads `pst2.<pin>.<epoch>.<secret>`, and a relay of a lower epoch is sent nothing: somebody may have the key of the one before.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bincode::enc::Encoder;
use bincode::error::EncodeError;
use bincode::{BorrowDecode, Encode};
use zeroize::Zeroizing;

use crate::codec::{self, CodecError};

/// From agent to relay.
#[derive(Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct JoinRequest {
    pub secret: Vec<u8>,
    /// A certificate request, DER, signed by the key that the agent made: proof of possession.
    pub csr: Vec<u8>,
    pub instance: String,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// From agent to relay, of an instance whose certificate ended: it proves its newest key and asks for the next certificate.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct RecoverRequest {
    /// The last chain that it was given, DER, leaf first: whose instance this is.
    pub chain: Vec<Vec<u8>>,
    /// The key that proves it, as SubjectPublicKeyInfo, DER: the leaf's, or one that a renewal asked for whose answer never came.
    pub key: Vec<u8>,
    /// A certificate request, DER, signed by a new key.
    pub csr: Vec<u8>,
    /// ECDSA over P-256 with SHA-256 (ASN.1), by `key`, over [`RecoverRequest::signed`].
    pub signature: Vec<u8>,
}

impl RecoverRequest {
    /// What the key signs: this connection (its exporter, RFC 8446 7.5), so that nobody can pass it on, and the request that it is for.
    pub fn signed(exporter: &[u8; 32], csr: &[u8]) -> Vec<u8> {
        [b"postern recover 1\0".as_slice(), exporter, csr].concat()
    }
}

/// What an agent asks on a join's stream. A recovery begins with a zero, as no join does, since no secret is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    Join(JoinRequest),
    Recover(RecoverRequest),
}

impl Question {
    /// # Errors
    /// Neither a join nor a recovery.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        match bytes.split_first() {
            Some((0, recovery)) => Ok(Self::Recover(codec::decode(recovery)?)),
            Some(_) | None => Ok(Self::Join(codec::decode(bytes)?)),
        }
    }
}

impl Encode for Question {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        match self {
            Self::Join(request) => request.encode(encoder),
            Self::Recover(request) => {
                0_u8.encode(encoder)?;
                request.encode(encoder)
            }
        }
    }
}

/// From relay to agent.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub enum JoinAnswer {
    /// The chain, DER, leaf first, and the trust domain that the certificate speaks for.
    Granted {
        chain: Vec<Vec<u8>>,
        trust_domain: String,
    },
    Refused {
        code: u16,
        reason: String,
    },
}

/// Why a relay refused to enrol (`JoinAnswer::Refused.code`).
pub mod refusal {
    /// No such invite, or already used: the answer is the same, so that guessing learns nothing.
    pub const INVALID: u16 = 1;
    pub const EXPIRED: u16 = 2;
    /// The request for a certificate was malformed or not signed by its own key.
    pub const BAD_REQUEST: u16 = 3;
    /// Too many joins at once, or too many failures from this address.
    pub const TOO_MANY: u16 = 4;
    /// The relay could not complete an otherwise good join; try again with the same invite.
    pub const UNAVAILABLE: u16 = 5;
    /// The instance is suspended, until an operator resumes it.
    pub const SUSPENDED: u16 = 6;
    /// The instance was removed, or never enrolled here.
    pub const NOT_ENROLLED: u16 = 7;
    /// Its certificate ended longer ago than `agents.recover`.
    pub const TOO_LATE: u16 = 8;
    /// An older key of the instance: somebody may have a copy of it. The instance is suspended now.
    pub const OLD_KEY: u16 = 9;
    /// No key of the instance.
    pub const UNKNOWN_KEY: u16 = 10;
}

/// What an operator hands to whoever installs an agent.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    /// SHA-256 of the root's SubjectPublicKeyInfo.
    pub pin: [u8; 32],
    /// Of the authority in force when it was made; up to [`FIRST`] there was none before, and it is not written down.
    pub epoch: u64,
    /// At least 16 bytes.
    pub secret: Zeroizing<Vec<u8>>,
}

/// The epoch of the first authority.
const FIRST: u64 = 1;

/// A text that is not an invite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not an invite: it should begin with pst1. or pst2., as `postern-relay agent invite NAME` prints it"
)]
pub struct InviteError;

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pin, secret) = (BASE64.encode(self.pin), Zeroizing::new(BASE64.encode(&*self.secret)));
        match self.epoch {
            0..=FIRST => write!(f, "pst1.{pin}.{}", *secret),
            epoch => write!(f, "pst2.{pin}.{epoch}.{}", *secret),
        }
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Invite(…)")
    }
}

impl FromStr for Invite {
    type Err = InviteError;
    fn from_str(text: &str) -> Result<Self, InviteError> {
        let parts: Vec<&str> = text.trim().splitn(5, '.').collect();
        let (pin, epoch, secret) = match parts[..] {
            ["pst1", pin, secret] => (pin, 0, secret),
            ["pst2", pin, epoch, secret] => (pin, epoch.parse().map_err(|_| InviteError)?, secret),
            _ => return Err(InviteError),
        };
        let pin = BASE64.decode(pin).map_err(|_| InviteError)?.try_into().map_err(|_| InviteError)?;
        let secret = Zeroizing::new(BASE64.decode(secret).map_err(|_| InviteError)?);
        if (16..=64).contains(&secret.len()) { Ok(Self { pin, epoch, secret }) } else { Err(InviteError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{JOIN_LIMIT, PREFIX, encoded};

    #[test]
    fn questions_are_told_apart_and_keep_their_bytes() {
        let join = JoinRequest { secret: vec![9; 16], csr: vec![1], instance: "i".into() };
        let recover =
            RecoverRequest { chain: vec![vec![1, 2]], key: vec![3], csr: vec![4], signature: vec![5, 6] };
        let old = encoded(&join, JOIN_LIMIT).unwrap();
        for (question, bytes) in [
            (Question::Join(join), &old[PREFIX..]),
            (Question::Recover(recover), &[0, 1, 2, 1, 2, 1, 3, 1, 4, 2, 5, 6]),
        ] {
            assert_eq!(&encoded(&question, JOIN_LIMIT).unwrap()[PREFIX..], bytes);
            assert_eq!(Question::decode(bytes).unwrap(), question);
            assert!(Question::decode(&[bytes, &[0]].concat()).is_err(), "trailing bytes");
        }
        assert!(Question::decode(&[]).is_err());
    }

    #[test]
    fn invites_read_back_and_show_nothing() {
        let of = |epoch| Invite { pin: [7; 32], epoch, secret: Zeroizing::new(vec![9; 16]) };
        let (pin, secret) = (BASE64.encode([7; 32]), BASE64.encode([9; 16]));
        for (epoch, text) in
            [(0, format!("pst1.{pin}.{secret}")), (1_790_000_000, format!("pst2.{pin}.1790000000.{secret}"))]
        {
            assert_eq!(of(epoch).to_string(), text);
            assert_eq!(format!(" {text}\n").parse::<Invite>().unwrap(), of(epoch));
        }
        assert_eq!(of(1).to_string(), of(0).to_string(), "the first authority replaced none");
        assert_eq!(format!("{:?}", of(2)), "Invite(…)");
        for bad in [
            "",
            "pst1.x.y",
            "pst2.a.b",
            &format!("pst1.{pin}.CQk"),
            &format!("pst1.{pin}.2.{secret}"),
            &format!("pst2.{pin}.{secret}"),
            &format!("pst2.{pin}.-1.{secret}"),
            &format!("pst2.{pin}.2.{secret}.{secret}"),
            &format!("pst3.{pin}.2.{secret}"),
        ] {
            assert_eq!(bad.parse::<Invite>(), Err(InviteError), "{bad}");
        }
    }
}
