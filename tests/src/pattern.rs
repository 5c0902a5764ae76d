//! Takes a position; gives the bytes that belong there, without copying; and checks that a received stream has every byte in its
//! place. Any loss, doubling or swap shows, since the period of the pattern is prime.

use std::sync::LazyLock;

use anyhow::{Result, bail};
use bytes::Bytes;

const PERIOD: usize = 251;
/// The largest chunk given at once.
pub const CHUNK: usize = 64 * 1024;

static BLOCK: LazyLock<Bytes> = LazyLock::new(|| {
    let one: Vec<u8> = (0u8..251).collect();
    one.repeat(CHUNK / PERIOD + 2).into()
});

/// The `length` bytes at `offset`, at most [`CHUNK`] of them.
pub fn chunk(offset: u64, length: u64) -> Bytes {
    let start = usize::try_from(offset % PERIOD as u64).unwrap_or_default();
    let length = usize::try_from(length).unwrap_or(CHUNK).min(CHUNK);
    BLOCK.slice(start..start + length)
}

/// Counts and checks what arrives.
#[derive(Debug, Clone, Copy, Default)]
pub struct Check {
    received: u64,
}

impl Check {
    /// The next bytes of the stream.
    ///
    /// # Errors
    /// They are not what belongs there.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let expected = chunk(self.received, bytes.len() as u64);
            let (now, rest) = bytes.split_at(expected.len());
            if now != expected {
                bail!("a wrong byte between {} and {}", self.received, self.received + now.len() as u64);
            }
            self.received += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    pub fn received(&self) -> u64 {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_byte_shows() {
        let mut check = Check::default();
        check.feed(&chunk(0, 70_000)).unwrap();
        assert_eq!(check.received(), CHUNK as u64);
        check.feed(&chunk(CHUNK as u64, 100)).unwrap();
        assert!(check.feed(&chunk(CHUNK as u64 + 101, 10)).is_err());
        let mut whole = Check::default();
        whole.feed(&[chunk(0, 60_000), chunk(60_000, 60_000)].concat()).unwrap();
        assert_eq!(whole.received(), 120_000);
    }
}
