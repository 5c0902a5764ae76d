//! Takes the leases of live streams and a fresh token; gives what the relay says of each: renewed, or why not.

use http::{HeaderMap, HeaderName};
use serde::{Deserialize, Serialize};

use super::{Relay, RelayError};
use crate::output::text::Afar;
use crate::session::pass::Pass;

/// On an answer that switches: what the stream is called in renewals. It is this program's alone.
pub(crate) const LEASE: HeaderName = HeaderName::from_static("postern-lease");
/// 128 bits in base64url, at least; the relay's own are not much longer.
const ID_LENGTH: std::ops::RangeInclusive<usize> = 22..=128;
/// So many ids go with one request: the relay takes 1,000 and 64 KiB.
const AT_ONCE: usize = 450;

/// The lease on an answer's head, if there is one that can be renewed.
pub(crate) fn id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(LEASE)?.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (ID_LENGTH.contains(&id.len()) && id.bytes().all(plain)).then_some(id)
}

#[derive(Serialize)]
struct Ask<'a> {
    leases: &'a [String],
}

#[derive(Deserialize)]
struct Answer {
    leases: Vec<Renewal>,
}

/// What the relay says of one lease.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Renewal {
    pub(crate) id: String,
    pub(crate) renewed: bool,
    /// Seconds since the epoch, by the relay's clock.
    #[serde(default)]
    pub(crate) expires: Option<u64>,
    #[serde(default)]
    pub(crate) reason: Option<Afar>,
}

impl Relay {
    /// Shows the token for these streams; one that the relay does not speak of is not in the answer.
    pub(crate) async fn renew(&self, pass: &Pass, ids: &[String]) -> Result<Vec<Renewal>, RelayError> {
        let mut all = Vec::with_capacity(ids.len());
        for leases in ids.chunks(AT_ONCE) {
            let answer: Answer = self.post("/.postern/lease", &Ask { leases }, pass).await?;
            all.extend(answer.leases);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_what_can_be_an_id_is_one() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LEASE, HeaderValue::from_str(text).unwrap());
            id(&headers).map(str::to_owned)
        };
        let good = "AAAAAAAAAAAAAAAAAAAA-_";
        assert_eq!(of(good).as_deref(), Some(good));
        for bad in [&good[1..], "AAAAAAAAAAAAAAAAAAAA\"}", &"A".repeat(129)] {
            assert_eq!(of(bad), None, "{bad}");
        }
        assert_eq!(id(&HeaderMap::new()), None);
    }
}
