//! Request and response heads: what a request stream carries before its body, in each direction. Heads borrow what they say: writing one
//! copies nothing but into the message, and reading one copies nothing out of it.

use bincode::de::BorrowDecoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Encode};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::codec::CodecError;

/// Header fields in order; on the wire a count, then name and value of each as byte strings.
#[derive(Debug, Clone)]
pub enum Fields<'a> {
    /// To be written.
    Map(&'a HeaderMap),
    /// As read; not judged yet.
    Read(Vec<(&'a [u8], &'a [u8])>),
}

/// More fields than any limit of ours lets pass (security.md 2), so that a peer cannot make us build a huge table.
const FIELDS_LIMIT: u64 = 1024;

impl Fields<'_> {
    /// The fields as a map whose values share `message`'s memory, of which they were read.
    ///
    /// # Errors
    /// A name or value that HTTP forbids.
    pub fn into_map(self, message: &Bytes) -> Result<HeaderMap, CodecError> {
        let malformed = |what: &str| CodecError::Malformed(format!("malformed header {what}"));
        let pairs = match self {
            Self::Map(map) => return Ok(map.clone()),
            Self::Read(pairs) => pairs,
        };
        let mut map = HeaderMap::with_capacity(pairs.len());
        for (name, value) in pairs {
            let name = HeaderName::from_lowercase(name).map_err(|_| malformed("name"))?;
            let value =
                HeaderValue::from_maybe_shared(message.slice_ref(value)).map_err(|_| malformed("value"))?;
            map.try_append(name, value).map_err(|_| malformed("table"))?;
        }
        Ok(map)
    }
}

impl Encode for Fields<'_> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        match self {
            Self::Map(map) => {
                Encode::encode(&(map.len() as u64), encoder)?;
                map.iter().try_for_each(|(name, value)| {
                    Encode::encode(name.as_str(), encoder)?;
                    Encode::encode(value.as_bytes(), encoder)
                })
            }
            Self::Read(pairs) => {
                Encode::encode(&(pairs.len() as u64), encoder)?;
                pairs.iter().try_for_each(|(name, value)| {
                    Encode::encode(*name, encoder)?;
                    Encode::encode(*value, encoder)
                })
            }
        }
    }
}

impl<'de: 'a, 'a, C> BorrowDecode<'de, C> for Fields<'a> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let count = <u64 as BorrowDecode<C>>::borrow_decode(decoder)?;
        if count > FIELDS_LIMIT {
            return Err(DecodeError::LimitExceeded);
        }
        // Grows with what is there, not with what is declared.
        let mut pairs = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(32));
        for _ in 0..count {
            let name = <&[u8] as BorrowDecode<C>>::borrow_decode(decoder)?;
            let value = <&[u8] as BorrowDecode<C>>::borrow_decode(decoder)?;
            pairs.push((name, value));
        }
        Ok(Self::Read(pairs))
    }
}

/// Who the relay says the caller is: information for the agent's log, never a proof.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct CallerInfo<'a> {
    pub issuer: &'a str,
    pub subject: &'a str,
    pub client: Option<&'a str>,
    pub scopes: Vec<&'a str>,
    pub roles: Vec<&'a str>,
    /// Seconds since the epoch.
    pub expires: u64,
}

/// The caller's own token, sent only to agents that verify, and only where relay.toml says so.
#[derive(Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Credential<'a> {
    pub scheme: &'a str,
    pub token: &'a str,
    pub proof: Option<&'a str>,
    pub method: &'a str,
    pub public_uri: &'a str,
    pub certificate_sha256: Option<[u8; 32]>,
}

impl std::fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(…)")
    }
}

/// The same where it outlives the message it came in ([`crate::control::RelayMessage::Lease`]); alike on the wire.
#[derive(Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct OwnedCredential {
    pub scheme: String,
    pub token: String,
    pub proof: Option<String>,
    pub method: String,
    pub public_uri: String,
    pub certificate_sha256: Option<[u8; 32]>,
}

impl Credential<'_> {
    pub fn owned(&self) -> OwnedCredential {
        OwnedCredential {
            scheme: self.scheme.to_owned(),
            token: self.token.to_owned(),
            proof: self.proof.map(str::to_owned),
            method: self.method.to_owned(),
            public_uri: self.public_uri.to_owned(),
            certificate_sha256: self.certificate_sha256,
        }
    }
}

impl OwnedCredential {
    pub fn borrowed(&self) -> Credential<'_> {
        Credential {
            scheme: &self.scheme,
            token: &self.token,
            proof: self.proof.as_deref(),
            method: &self.method,
            public_uri: &self.public_uri,
            certificate_sha256: self.certificate_sha256,
        }
    }
}

impl std::fmt::Debug for OwnedCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(…)")
    }
}

/// From relay to agent, first on every request stream.
#[derive(Debug, Clone, Encode, BorrowDecode)]
pub enum RequestHead<'a> {
    /// Answered by [`ResponseHead::Http`]; the body follows in frames, unless `upgrade` asks for another protocol: then there is none,
    /// and after an answer of 101 both directions are raw.
    Http {
        request_id: &'a str,
        traceparent: &'a str,
        service: &'a str,
        method: &'a str,
        path_and_query: &'a str,
        fields: Fields<'a>,
        caller: CallerInfo<'a>,
        credential: Option<Credential<'a>>,
        upgrade: Option<&'a str>,
    },
    /// A connection to a TCP service, answered by [`ResponseHead::Opened`]; then both directions are raw.
    Tcp {
        request_id: &'a str,
        traceparent: &'a str,
        service: &'a str,
        caller: CallerInfo<'a>,
        credential: Option<Credential<'a>>,
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

/// What exactly failed (`ResponseHead::Failed.code`); `detail` is for people. After `BUSY`, `REFUSED` and `UNREACHABLE` no upstream has seen
/// the request.
pub mod failure {
    pub const NO_SUCH_SERVICE: u16 = 1;
    pub const NOT_PERMITTED_HERE: u16 = 2;
    /// The agent's own limit of concurrent requests; the upstream has seen nothing of it.
    pub const BUSY: u16 = 3;
    pub const REFUSED: u16 = 4;
    pub const UNREACHABLE: u16 = 5;
    pub const BAD_ANSWER: u16 = 6;
    pub const TIMED_OUT: u16 = 7;
    pub const NOT_SUPPORTED: u16 = 8;
}

/// From agent to relay, before any body.
#[derive(Debug, Clone, Encode, BorrowDecode)]
pub enum ResponseHead<'a> {
    /// 101 where the upstream switched protocols: the stream is raw from here on.
    Http {
        status: u16,
        fields: Fields<'a>,
    },
    /// The TCP connection stands; the stream is raw from here on.
    Opened,
    Failed {
        stage: Stage,
        code: u16,
        detail: &'a str,
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
        let head = ResponseHead::Http { status: 200, fields: Fields::Map(&fields) };
        let bytes = encoded(&head, HEAD_LIMIT).unwrap().slice(PREFIX..);
        assert_eq!(bytes[..4], [0, 200, 3, 3]);
        let read = decode::<ResponseHead<'_>>(&bytes).unwrap();
        let ResponseHead::Http { status: 200, fields: read } = read else { panic!("{read:?}") };
        assert_eq!(encoded(&read, HEAD_LIMIT).unwrap()[PREFIX..], bytes[2..]);
        assert_eq!(read.into_map(&bytes).unwrap(), fields);
        let failed = ResponseHead::Failed { stage: Stage::Connect, code: failure::REFUSED, detail: "x" };
        assert_eq!(&encoded(&failed, HEAD_LIMIT).unwrap()[PREFIX..], [2, 2, 4, 1, b'x']);
    }

    #[test]
    fn bytes_on_the_wire_do_not_change() {
        let caller = CallerInfo {
            issuer: "i",
            subject: "s",
            client: None,
            scopes: vec!["a"],
            roles: vec![],
            expires: 7,
        };
        let head =
            RequestHead::Tcp { request_id: "r", traceparent: "t", service: "db", caller, credential: None };
        let expected = [1, 1, b'r', 1, b't', 2, b'd', b'b', 1, b'i', 1, b's', 0, 1, 1, b'a', 0, 7, 0];
        assert_eq!(&encoded(&head, HEAD_LIMIT).unwrap()[PREFIX..], expected);
    }

    #[test]
    fn fields_that_http_forbids_are_refused() {
        for bad in [&[0, 200, 1, 1, b'A', 0][..], &[0, 200, 1, 1, b'a', 1, b'\n'], &[0, 200, 1, 0, 0]] {
            let bytes = Bytes::copy_from_slice(bad);
            let read = decode::<ResponseHead<'_>>(&bytes).unwrap();
            let ResponseHead::Http { fields, .. } = read else { panic!("{read:?}") };
            assert!(fields.into_map(&bytes).is_err(), "{bad:?}");
        }
        assert!(decode::<ResponseHead<'_>>(&[0, 200, 252, 1, 0, 1, 0]).is_err(), "65,537 fields");
    }
}
