//! What goes on to a service beside the request itself: who calls, in the relay's words and signed with its key, and the token that the
//! upstream may have. Takes a permit and what the caller showed; gives header fields; refuses what does not fit, and what an issuer does
//! not give.

use std::path::Path;
use std::time::SystemTime;

mod assertion;
mod exchange;
mod identity;
mod keys;

pub use exchange::Exchanges;
pub use identity::{Identities, IdentityError};
pub use keys::{Keys, KeysError};

/// What all workers share of it.
#[derive(Debug)]
pub struct Onward {
    pub keys: Keys,
    pub exchanges: Exchanges,
}

impl Onward {
    /// With the keys in the state directory; they are made there where none are.
    pub fn open(state: &Path, now: SystemTime) -> Result<Self, KeysError> {
        Ok(Self { keys: Keys::open(&state.join("assertion"), now)?, exchanges: Exchanges::default() })
    }
}
