//! Nonces for proofs (RFC 9449 8 and 9): takes the time, gives what a proof of that time must carry; takes a nonce, says whether this
//! process gave it lately. Nothing is kept: a nonce is a MAC over its minute, under a key of this process.

use std::time::{Duration, SystemTime};

use aws_lc_rs::{constant_time, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// How long one nonce is given out; it is taken for as long again.
const TURN: Duration = Duration::from_mins(1);
/// Bytes of the MAC that are shown: as unguessable as a key, and short in a field.
const SHOWN: usize = 16;

pub(super) struct Nonces {
    /// None where the system has no randomness: then no nonce is ever good.
    key: Option<hmac::Key>,
}

impl Nonces {
    pub(super) fn new() -> Self {
        let mut bytes = [0; 32];
        let key = rand::fill(&mut bytes).ok().map(|()| hmac::Key::new(hmac::HMAC_SHA256, &bytes));
        Self { key }
    }

    pub(super) fn current(&self, now: SystemTime) -> Option<String> {
        self.of(turn(now))
    }

    /// Whether it is this minute's or the last one's.
    pub(super) fn is_ours(&self, nonce: &str, now: SystemTime) -> bool {
        let turn = turn(now);
        [Some(turn), turn.checked_sub(1)].into_iter().flatten().any(|turn| {
            let given = self.of(turn);
            given.is_some_and(|given| {
                constant_time::verify_slices_are_equal(given.as_bytes(), nonce.as_bytes()).is_ok()
            })
        })
    }

    fn of(&self, turn: u64) -> Option<String> {
        let tag = hmac::sign(self.key.as_ref()?, &turn.to_be_bytes());
        tag.as_ref().get(..SHOWN).map(|shown| URL_SAFE_NO_PAD.encode(shown))
    }
}

fn turn(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / TURN.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_are_good_for_their_minute_and_the_next() {
        let (ours, theirs) = (Nonces::new(), Nonces::new());
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
        let nonce = ours.current(at(59)).unwrap();
        assert_eq!((nonce.len(), ours.current(at(0)).as_ref()), (22, Some(&nonce)));
        assert!(ours.is_ours(&nonce, at(0)) && ours.is_ours(&nonce, at(119)));
        assert!(!ours.is_ours(&nonce, at(120)) && !theirs.is_ours(&nonce, at(59)));
        for bad in ["", "x", &nonce[..21], &format!("{nonce}A"), &nonce.to_ascii_lowercase()] {
            assert!(!ours.is_ours(bad, at(59)), "{bad}");
        }
        let next = ours.current(at(60)).unwrap();
        assert!(next != nonce && !ours.is_ours(&next, at(59)), "not before its time");
    }
}
