//! The decision: a token becomes a [`principal::Principal`], and policy turns principal and target into a permit or a denial.
//!
//! Pure but for fetching issuers' keys; the relay and the agent use the same code. Proofs (`Principal`, `Permit`) cannot be made
//! outside this crate.

#[cfg(test)]
mod cost;
pub mod path;
pub mod policy;
pub mod principal;
pub mod token;
