//! The agent beside the services: dials out to relays, and calls only the upstreams its own file lists.

pub mod admin;
pub mod audit;
pub mod chain;
pub mod cli;
pub mod commands;
pub mod config;
pub mod identity;
pub mod join;
pub mod lease;
pub mod observe;
pub mod recover;
pub mod request;
pub mod settings;
pub mod supervisor;
pub mod tunnel;
pub mod upstream;
pub mod verify;

pub use cli::{definition, main};
pub use supervisor::run;
