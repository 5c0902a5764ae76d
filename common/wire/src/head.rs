//! Request and response heads: what a request stream carries before its body, in each direction.

use bincode::de::BorrowDecoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Encode};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Header fields in order; on the wire a count, then name and value of each as byte strings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub HeaderMap);

/// More fields than any limit of ours lets pass (security.md 2), so that a peer cannot make us build a huge table.
const FIELDS_LIMIT: u64 = 1024;

impl Encode for Fields {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        Encode::encode(&(self.0.len() as u64), encoder)?;
        for (name, value) in &self.0 {
            Encode::encode(name.as_str(), encoder)?;
            Encode::encode(value.as_bytes(), encoder)?;
        }
        Ok(())
    }
}

impl<'de, C> BorrowDecode<'de, C> for Fields {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let refuse = |_| DecodeError::Other("malformed header field");
        let count = <u64 as BorrowDecode<C>>::borrow_decode(decoder)?;
        if count > FIELDS_LIMIT {
            return Err(DecodeError::LimitExceeded);
        }
        let mut fields = HeaderMap::new();
        for _ in 0..count {
            let name = <&[u8] as BorrowDecode<C>>::borrow_decode(decoder)?;
            let value = <&[u8] as BorrowDecode<C>>::borrow_decode(decoder)?;
            decoder.claim_bytes_read(1)?;
            let name =
                HeaderName::from_lowercase(name).map_err(|_| DecodeError::Other("malformed header name"))?;
            let value =
                HeaderValue::from_bytes(value).map_err(|_| DecodeError::Other("malformed header value"))?;
            fields.try_append(name, value).map_err(refuse)?;
        }
        Ok(Self(fields))
    }
}

/// Who the relay says the caller is: information for the agent's log, never a proof.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct CallerInfo {
    pub issuer: String,
    pub subject: String,
    pub client: Option<String>,
    pub scopes: Vec<String>,
    pub roles: Vec<String>,
    /// Seconds since the epoch.
    pub expires: u64,
}

/// The caller's own token, sent only to agents that verify, and only where relay.toml says so.
#[derive(Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Credential {
    pub scheme: String,
    pub token: String,
    pub proof: Option<String>,
    pub method: String,
    pub public_uri: String,
    pub certificate_sha256: Option<[u8; 32]>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(…)")
    }
}

/// From relay to agent, first on every request stream.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub enum RequestHead {
    Http {
        request_id: String,
        traceparent: String,
        service: String,
        method: String,
        path_and_query: String,
        fields: Fields,
        caller: CallerInfo,
        credential: Option<Credential>,
        upgrade: Option<String>,
    },
}

/// Who failed, as the agent saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Stage {
    /// The agent itself: no such service in its file, a ceiling of its own, overload.
    Agent,
    /// The agent's own verification of the caller.
    Verify,
    /// The upstream could not be reached.
    Connect,
    /// The upstream's certificate or handshake was refused.
    Tls,
    /// The upstream answered wrongly.
    Upstream,
    /// The upstream did not answer in time.
    Timeout,
}

/// What exactly failed (`ResponseHead::Failed.code`); numbers are for logs and metrics, `detail` is for people.
pub mod failure {
    pub const NO_SUCH_SERVICE: u16 = 1;
    pub const NOT_PERMITTED_HERE: u16 = 2;
    pub const REFUSED: u16 = 4;
    pub const UNREACHABLE: u16 = 5;
    pub const BAD_ANSWER: u16 = 6;
    pub const TIMED_OUT: u16 = 7;
    pub const NOT_SUPPORTED: u16 = 8;
}

/// From agent to relay, before any body.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub enum ResponseHead {
    Http {
        status: u16,
        fields: Fields,
    },
    /// The stream is raw bytes from here on (upgrades and TCP services).
    Opened,
    Failed {
        stage: Stage,
        code: u16,
        detail: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{HEAD_LIMIT, PREFIX, decode, encoded};

    #[test]
    fn heads_read_back_with_repeated_fields_in_order() {
        let mut fields = HeaderMap::new();
        fields.append("x-a", HeaderValue::from_static("1"));
        fields.append("x-a", HeaderValue::from_static("2"));
        fields.append("x-b", HeaderValue::from_bytes(b"\xff").unwrap());
        let head = ResponseHead::Http { status: 200, fields: Fields(fields) };
        let bytes = encoded(&head, HEAD_LIMIT).unwrap();
        assert_eq!(bytes[PREFIX..PREFIX + 4], [0, 200, 3, 3]);
        assert_eq!(decode::<ResponseHead>(&bytes[PREFIX..]).unwrap(), head);
        let failed =
            ResponseHead::Failed { stage: Stage::Connect, code: failure::REFUSED, detail: "x".into() };
        assert_eq!(&encoded(&failed, HEAD_LIMIT).unwrap()[PREFIX..], [2, 2, 4, 1, b'x']);
    }

    #[test]
    fn fields_that_http_forbids_are_refused() {
        for bad in [
            &[0, 200, 1, 1, b'A', 0][..],
            &[0, 200, 1, 1, b'a', 1, b'\n'],
            &[0, 200, 1, 0, 0],
            &[0, 200, 252, 1, 0, 1, 0],
        ] {
            assert!(decode::<ResponseHead>(bad).is_err(), "{bad:?}");
        }
    }
}
