//! The foundation under every Postern program: names and ids, configuration with good errors, secrets, back-off,
//! shutdown, telemetry, audit logs, the admin socket, HTTP proxies and a bounded HTTP client. It knows nothing of tunnels, tokens or policy.

pub mod admin;
pub mod audit;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod console;
pub mod defaults;
pub mod file;
pub mod generations;
pub mod http_client;
pub mod id;
pub mod network;
pub mod observe;
pub mod proxy;
pub mod secret;
pub mod shutdown;
pub mod sync;
pub mod telemetry;
pub mod value;
