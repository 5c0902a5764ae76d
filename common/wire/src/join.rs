//! Enrolment: one question and one answer on the first stream of a `postern-join/1` connection, and the invite that starts it.
//!
//! An invite reads `pst1.<pin>.<secret>`: the pin is the SHA-256 of the root's public key info, the secret 128 bits or more, both
//! base64url. The agent sends the secret only after the relay's chain was proved to end in the pinned root.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bincode::{BorrowDecode, Encode};
use zeroize::Zeroizing;

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
}

/// What an operator hands to whoever installs an agent.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    /// SHA-256 of the root's SubjectPublicKeyInfo.
    pub pin: [u8; 32],
    /// At least 16 bytes.
    pub secret: Zeroizing<Vec<u8>>,
}

/// A text that is not an invite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not an invite: it should read pst1.<pin>.<secret>, as `postern-relay agent invite NAME` prints it"
)]
pub struct InviteError;

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pst1.{}.{}", BASE64.encode(self.pin), BASE64.encode(&*self.secret))
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
        let mut parts = text.trim().split('.');
        let (Some("pst1"), Some(pin), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InviteError);
        };
        let pin = BASE64.decode(pin).map_err(|_| InviteError)?.try_into().map_err(|_| InviteError)?;
        let secret = Zeroizing::new(BASE64.decode(secret).map_err(|_| InviteError)?);
        if (16..=64).contains(&secret.len()) { Ok(Self { pin, secret }) } else { Err(InviteError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invites_read_back_and_show_nothing() {
        let invite = Invite { pin: [7; 32], secret: Zeroizing::new(vec![9; 16]) };
        assert_eq!(invite.to_string().parse::<Invite>().unwrap(), invite);
        assert_eq!(format!("{invite:?}"), "Invite(…)");
        for bad in ["", "pst1.x.y", "pst2.a.b", "pst1.BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc.CQk"] {
            assert_eq!(bad.parse::<Invite>(), Err(InviteError), "{bad}");
        }
    }
}
