//! The harness of the end-to-end tests: real programs, a real issuer (npm oidc-provider), real upstreams (Debian nginx and a small
//! echo server), all on loopback in a directory of their own. A [`stand::Stand`] is all of it together.
//!
//! Nothing here sleeps to let something happen: it waits for a condition, with a deadline ([`wait`]).

pub mod agents_ca;
pub mod book;
pub mod client;
pub mod clock;
pub mod counting;
pub mod disk;
pub mod glewlwyd;
pub mod golden;
pub mod http;
pub mod issuer;
pub mod lives;
pub mod load;
pub mod lying;
pub mod machine;
pub mod manager;
pub mod mint;
pub mod netns;
pub mod pattern;
pub mod pki;
pub mod process;
pub mod relay_toml;
pub mod replica;
pub mod shell;
pub mod shim;
pub mod site;
pub mod stacks;
pub mod stand;
pub mod terminal;
pub mod tinyproxy;
pub mod upstream;
pub mod wait;
pub mod websocket;
