//! The promises of Postern, each shown by the real programs: a module per promise. Tests named `long_…` run with `tests/run --long`.

mod audit;
mod browser;
mod bulk;
mod ceiling;
mod drain;
mod enrolment;
mod first_steps;
mod forward;
mod house;
mod hygiene;
mod keys;
mod limits;
mod live;
mod load;
mod login;
mod paths;
mod policy;
mod reload;
mod renewal;
mod restart;
mod session;
mod tokens;
