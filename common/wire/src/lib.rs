//! The language of the tunnel between agent and relay: identities, links, control messages, heads and bodies.
//!
//! `docs/protocol.md` says it in words; the golden bytes under `common/wire/src` hold it still.

pub mod body;
pub mod codec;
pub mod control;
pub mod fields;
pub mod head;
pub mod join;
pub mod link;
pub mod pipe;
pub mod tls;
