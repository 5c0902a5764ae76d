//! The services behind the agent: Debian's nginx, whose access log proves what arrived, and a small server that says what it saw,
//! streams, counts, delays and holds.

mod echo;
mod nginx;

pub use echo::{Echo, Fault, Seen};
pub use nginx::Nginx;
