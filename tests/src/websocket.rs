//! As much of RFC 6455 as the load needs, for both ends: the handshake, unfragmented messages up to 64 KiB, masking, ping and close.
//! Anything else from the other side is an error: that real implementations are served is shown elsewhere, here every byte is checked.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Request, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::http::{Body, empty};

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const LARGEST: usize = 65_535;
/// In place of a length: it follows as two bytes.
const TWO_BYTES: u8 = 0x7E;
/// The same for eight.
const EIGHT_BYTES: u8 = 0x7F;

/// What kinds of frame there are here, with their numbers on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Kind {
    fn of(number: u8) -> Result<Self> {
        let all = [Self::Text, Self::Binary, Self::Close, Self::Ping, Self::Pong];
        all.into_iter()
            .find(|kind| *kind as u8 == number)
            .with_context(|| format!("a frame of kind {number}"))
    }
}

/// `Sec-WebSocket-Accept` for a key.
pub fn accept_of(key: &str) -> String {
    let digest = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}{GUID}").as_bytes(),
    );
    STANDARD.encode(digest)
}

/// A key for a request.
pub fn key() -> String {
    STANDARD.encode(rand::random::<[u8; 16]>())
}

/// The 101 for a request that asks for a WebSocket; none for any other.
pub fn accept<B>(request: &Request<B>) -> Option<Response<Body>> {
    let field = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let is_asked = field(header::UPGRADE).is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    let key = field(header::SEC_WEBSOCKET_KEY).filter(|_| is_asked)?;
    let answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept_of(key));
    answer.body(empty()).ok()
}

/// Whether an answer's fields belong to the key that was sent.
pub fn is_accepted(fields: &HeaderMap, key: &str) -> bool {
    fields.get(header::SEC_WEBSOCKET_ACCEPT).is_some_and(|accept| *accept == *accept_of(key))
}

/// Writes one frame; a client masks it.
pub async fn write(
    io: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    payload: &[u8],
    is_client: bool,
) -> Result<()> {
    ensure!(payload.len() <= LARGEST, "a message of {} bytes", payload.len());
    let mut frame = vec![FINAL | kind as u8];
    let mask_bit = if is_client { MASKED } else { 0 };
    match u8::try_from(payload.len()) {
        Ok(short) if short < TWO_BYTES => frame.push(mask_bit | short),
        _ => {
            frame.push(mask_bit | TWO_BYTES);
            frame.extend_from_slice(&u16::try_from(payload.len())?.to_be_bytes());
        }
    }
    if is_client {
        let mask: [u8; 4] = rand::random();
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        frame.extend_from_slice(payload);
    }
    io.write_all(&frame).await?;
    Ok(io.flush().await?)
}

/// Reads one frame; whether it is masked must fit the side that sent it.
pub async fn read(io: &mut (impl AsyncRead + Unpin), from_client: bool) -> Result<(Kind, Vec<u8>)> {
    let mut head = [0; 2];
    io.read_exact(&mut head).await?;
    ensure!(head[0] & 0xF0 == FINAL, "a fragment, or a reserved bit: {head:?}");
    ensure!((head[1] & MASKED != 0) == from_client, "masked or not, from the wrong side: {head:?}");
    let kind = Kind::of(head[0] & 0x0F)?;
    let length = match head[1] & !MASKED {
        EIGHT_BYTES => bail!("a message above 64 KiB"),
        TWO_BYTES => usize::from(io.read_u16().await?),
        short => usize::from(short),
    };
    let mut mask = [0; 4];
    if from_client {
        io.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok((kind, payload))
}

/// The server's side: every message comes back, a ping is answered, a close is returned and ends it.
pub async fn echo(mut io: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    loop {
        let (kind, payload) = read(&mut io, true).await?;
        let back = if kind == Kind::Ping { Kind::Pong } else { kind };
        if kind != Kind::Pong {
            write(&mut io, back, &payload, false).await?;
        }
        if kind == Kind::Close {
            return Ok(io.shutdown().await?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn messages_come_back() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let talk = async {
            for (kind, payload) in
                [(Kind::Text, vec![]), (Kind::Binary, vec![7; 125]), (Kind::Binary, vec![9; 65_535])]
            {
                write(&mut client, kind, &payload, true).await?;
                assert_eq!(read(&mut client, false).await?, (kind, payload));
            }
            write(&mut client, Kind::Ping, b"?", true).await?;
            assert_eq!(read(&mut client, false).await?, (Kind::Pong, b"?".to_vec()));
            write(&mut client, Kind::Close, &1000u16.to_be_bytes(), true).await?;
            assert_eq!(read(&mut client, false).await?, (Kind::Close, 1000u16.to_be_bytes().to_vec()));
            anyhow::Ok(())
        };
        let (talked, echoed) = tokio::join!(talk, echo(server));
        talked.unwrap();
        echoed.unwrap();
    }
}
