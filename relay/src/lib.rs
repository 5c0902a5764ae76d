//! The public relay: HTTPS for callers, QUIC for agents, and the decision between them.
//!
//! Follow one request in `request`; the rooms are named in `ARCHITECTURE.md`.

#![allow(
    unreachable_pub,
    reason = "`pub` in a room is for the other rooms; the crate's own door is this file, so that the compiler sees what nobody uses"
)]

mod admin;
mod audit;
mod backup;
mod cli;
mod commands;
mod config;
mod enroll;
mod metrics;
mod onward;
mod public;
mod relay;
mod request;
mod session;
mod settings;
mod tunnel;
mod workers;

pub use cli::{definition, main};
pub use commands::documents;
