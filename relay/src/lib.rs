//! The public relay: HTTPS for callers, QUIC for agents, and the decision between them.
//!
//! Follow one request in [`request`]; the rooms are named in `ARCHITECTURE.md`.

pub mod admin;
pub mod audit;
pub mod backup;
pub mod cli;
pub mod commands;
pub mod config;
pub mod enroll;
pub mod metrics;
pub mod onward;
pub mod public;
pub mod relay;
pub mod request;
pub mod session;
pub mod settings;
pub mod tunnel;
pub mod workers;

pub use cli::{definition, main};
