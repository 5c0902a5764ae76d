//! How limits stand, as callers are told: takes standings, gives the fields `RateLimit` and
//! `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers), which are lists of strings with parameters (RFC 9651).

use std::fmt::Write;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::counts::Standing;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Both fields of one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitFields {
    state: HeaderValue,
    policy: HeaderValue,
}

impl LimitFields {
    pub(super) fn of(standings: &[Standing]) -> Option<Self> {
        // Two items of such a list are no longer than this.
        let (mut state, mut policy) = (String::with_capacity(64), String::with_capacity(64));
        for (at, Standing { kind, rate, left, reset, .. }) in standings.iter().enumerate() {
            let (comma, name) = (if at > 0 { ", " } else { "" }, kind.name());
            let (reset, window) = (seconds(*reset), seconds(rate.window()));
            write!(state, "{comma}{name:?};r={left};t={reset}").ok()?;
            write!(policy, "{comma}{name:?};q={};w={window}", rate.count).ok()?;
        }
        let field = |text| HeaderValue::try_from(text).ok();
        Some(Self { state: field(state)?, policy: field(policy)? })
    }

    /// The upstream may have limits of its own to tell of: ours come first, and hide none.
    pub fn put(self, headers: &mut HeaderMap) {
        for (name, value) in [(RATE_LIMIT, self.state), (POLICY, self.policy)] {
            let theirs: Vec<HeaderValue> = headers.get_all(&name).iter().cloned().collect();
            headers.insert(name.clone(), value);
            for value in theirs {
                headers.append(name.clone(), value);
            }
        }
    }
}

/// Whole seconds, rounded up.
pub(super) fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use postern_gate::policy::LimitKind;

    use super::*;

    #[test]
    fn ours_come_first_and_the_upstreams_stay() {
        let standing = |kind, rate: &str, left, millis| Standing {
            kind,
            rate: rate.parse().unwrap(),
            left,
            reset: Duration::from_millis(millis),
            wait: None,
        };
        let standings = [
            standing(LimitKind::Rate, "20/s per user", 19, 50),
            standing(LimitKind::Quota, "10000/day per client", 7, 3_600_000),
        ];
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit", HeaderValue::from_static("\"theirs\";r=1"));
        LimitFields::of(&standings).unwrap().put(&mut headers);
        let all = |name: &str| {
            headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(all("ratelimit"), ["\"rate\";r=19;t=1, \"quota\";r=7;t=3600", "\"theirs\";r=1"]);
        assert_eq!(all("ratelimit-policy"), ["\"rate\";q=20;w=1, \"quota\";q=10000;w=86400"]);
    }
}
