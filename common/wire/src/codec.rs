//! Takes bytes from a peer; gives messages; refuses oversize, unknown variants, trailing bytes and truncation with a named error.
//!
//! A message is its length (u32, big endian) and then bincode 2 `standard()`: little endian, variable-length integers. Pure: no I/O.

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use bincode::{BorrowDecode, Encode};
use bytes::{BufMut, Bytes, BytesMut};

/// The largest control message, in bytes.
pub const CONTROL_LIMIT: usize = 64 * 1024;
/// The largest request or response head: 32 KiB of caller headers by default, and room for an operator who raises that.
pub const HEAD_LIMIT: usize = 128 * 1024;
/// The largest join message: one CSR or one chain.
pub const JOIN_LIMIT: usize = 16 * 1024;
/// Bytes of the length before each message.
pub const PREFIX: usize = 4;

/// bincode's own ceiling, the largest of the limits above: what a message declares inside cannot ask for more memory than that.
const CONFIG: Configuration<LittleEndian, Varint, Limit<HEAD_LIMIT>> =
    config::standard().with_limit::<HEAD_LIMIT>();

/// Who broke which rule of the encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("a message of {size} bytes is over the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// Appends length and message to `out`.
pub fn encode<T: Encode>(message: &T, limit: usize, out: &mut BytesMut) -> Result<(), CodecError> {
    struct Sink<'a>(&'a mut BytesMut);
    impl bincode::enc::write::Writer for Sink<'_> {
        fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
            self.0.put_slice(bytes);
            Ok(())
        }
    }
    let start = out.len();
    out.put_u32(0);
    bincode::encode_into_writer(message, Sink(out), CONFIG)
        .map_err(|e| CodecError::Malformed(e.to_string()))?;
    let size = out.len() - start - PREFIX;
    match u32::try_from(size) {
        Ok(length) if size <= limit => {
            out[start..start + PREFIX].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(CodecError::TooLarge { size, limit })
        }
    }
}

/// One message as bytes ready to send.
pub fn encoded<T: Encode>(message: &T, limit: usize) -> Result<Bytes, CodecError> {
    // Most heads fit, so that they are written without growing.
    let mut out = BytesMut::with_capacity(1024);
    encode(message, limit, &mut out)?;
    Ok(out.freeze())
}

/// Checks a length prefix before anything else is read.
pub fn length(prefix: [u8; PREFIX], limit: usize) -> Result<usize, CodecError> {
    let size = u32::from_be_bytes(prefix) as usize;
    if size > limit { Err(CodecError::TooLarge { size, limit }) } else { Ok(size) }
}

/// Decodes one whole message, without its prefix.
pub fn decode<'a, T: BorrowDecode<'a, ()>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    let (message, used) =
        bincode::borrow_decode_from_slice(bytes, CONFIG).map_err(|e| CodecError::Malformed(e.to_string()))?;
    if used == bytes.len() { Ok(message) } else { Err(CodecError::Trailing(bytes.len() - used)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_trailing_or_cut_is_refused() {
        let bytes = encoded(&vec!["a".to_owned(), "b".to_owned()], 64).unwrap();
        assert_eq!(&bytes[..], [0, 0, 0, 5, 2, 1, b'a', 1, b'b']);
        assert_eq!(length([0, 0, 0, 5], 64), Ok(5));
        assert!(decode::<Vec<String>>(&bytes[PREFIX..]).is_ok());
        assert_eq!(decode::<Vec<String>>(&[1, 1, b'a', 7]), Err(CodecError::Trailing(1)));
        assert!(matches!(decode::<Vec<String>>(&bytes[PREFIX..8]), Err(CodecError::Malformed(_))));
        assert!(matches!(encoded(&"x".repeat(100), 64), Err(CodecError::TooLarge { size: 101, limit: 64 })));
        assert!(matches!(length([0xff; 4], CONTROL_LIMIT), Err(CodecError::TooLarge { .. })));
        // Nine bytes that declare a list of 2^60 entries cost nothing.
        let greedy = [253, 0, 0, 0, 0, 0, 0, 0, 16];
        assert!(decode::<Vec<String>>(&greedy).is_err());
    }
}
