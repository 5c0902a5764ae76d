//! The services behind the agent: Debian's nginx, whose access log proves what arrived, a small server that says what it saw, streams,
//! counts, delays and holds, and, for TCP, Debian's sshd and PostgreSQL; and HAProxy, which stands before the relay.

mod echo;
mod haproxy;
mod kinds;
mod nginx;
mod postgres;
mod sshd;

pub use echo::{Echo, Fault, Seen};
pub use haproxy::Balancer;
pub use kinds::{Kinds, LARGE};
pub use nginx::Nginx;
pub use postgres::Postgres;
pub use sshd::Sshd;
