//! The agent beside the services: dials out to relays, and calls only the upstreams its own file lists.

#![allow(
    unreachable_pub,
    reason = "`pub` in a room is for the other rooms; the crate's own door is this file, so that the compiler sees what nobody uses"
)]

mod admin;
mod audit;
mod chain;
mod cli;
mod commands;
mod config;
mod identity;
mod join;
mod lease;
mod observe;
mod recover;
mod request;
mod settings;
mod supervisor;
mod tunnel;
mod upstream;
mod verify;

pub use cli::{definition, main};
pub use commands::documents;
