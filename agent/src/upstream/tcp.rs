//! Bare connections to an upstream, for TCP services and upgrades: the next address where one takes none, TCP's keepalive always on.

use super::balance::Place;
use super::connect::Stream;
use super::{CallError, Route, Upstream};

impl Route {
    /// A new connection to the best address that takes one; `place` then counts there.
    pub(crate) async fn open(&self, place: &mut Place) -> Result<(Stream, usize), CallError> {
        let mut tried = 0;
        let mut last = None;
        while let Some(member) = place.choose(tried) {
            match self.upstream.connector.connect(self.upstream.address(member)).await {
                Ok(stream) => {
                    self.upstream.answered();
                    return Ok((stream, member));
                }
                Err(error) => {
                    self.upstream.out_of_reach(member, &error);
                    last = Some(error);
                }
            }
            tried |= 1 << member;
        }
        Err(last.unwrap_or(CallError::Refused))
    }
}

impl Upstream {
    /// Notes that an address took no connection: the others go first for a while.
    pub(super) fn out_of_reach(&self, member: usize, error: &CallError) {
        let (service, address) = (&self.service.name, self.address(member));
        if self.balance.set_aside(member) {
            tracing::warn!(%service, %address, %error, "an upstream takes no connection");
        } else {
            tracing::debug!(%service, %address, %error, "an upstream still takes no connection");
        }
    }
}
