//! The mode `scale`: what the relay's CPU per request and its memory do as tunnels grow, as services grow, as one service's rules grow,
//! and how agents come back when all of them have lost their relay at once. The agents are doubles ([`crate::fleet`]); the callers are wrk's.

use anyhow::Result;

use crate::Options;
use crate::contest::{MEMORY, P50, P99, RATE, RELAY, Score};
use crate::ratio::Bound::AtMost;
use crate::ratio::Ratio;
use crate::report::Report;

mod comeback;
mod services;
mod tunnels;

use services::Of;

/// "Flat": this much more CPU per request at the far end of a scale is noise and caches; more is growth.
const FLAT: f64 = 1.25;
const FLATTER: f64 = 1.10;
/// The relay's resident memory before any request, and what of it falls to each tunnel or service.
const IDLE: &str = "idle RSS MiB";
const EACH: &str = "KiB each";

pub(crate) async fn run(options: &Options, cores: usize) -> Result<Report> {
    let mut score = Score::default();
    tunnels::run(options, cores, &mut score).await?;
    services::run(Of::Services, options, cores, &mut score).await?;
    services::run(Of::Rules, options, cores, &mut score).await?;
    let Score { samples, notes, failures } = score;
    let (few, many) = (tunnels::SIZES[0], tunnels::sizes(options).last().copied().unwrap_or_default());
    let growth = |figure, of: String, to: String| samples.ratio(figure, &of, &to);
    let [little, some, much] = services::SIZES;
    let [short, long] = services::TABLES;
    let ratios = vec![
        Ratio::at_most(
            "scale_tunnels_cpu",
            growth(RELAY, tunnels::one_of(many), tunnels::one_of(few)),
            FLAT,
            Some(FLATTER),
        ),
        // No must: with few requests on each of many tunnels QUIC has nothing to gather into one packet, which is not growth of ours.
        Ratio::wish(
            "scale_tunnels_spread_cpu",
            growth(RELAY, tunnels::all_of(many), tunnels::all_of(few)),
            AtMost(FLAT),
        ),
        Ratio::at_most("scale_tunnels_memory", tunnels::growth(&samples, many), FLAT, Some(FLATTER)),
        Ratio::at_most(
            "scale_rules_cpu",
            growth(RELAY, Of::Services.name(much), Of::Services.name(little)),
            FLAT,
            Some(FLATTER),
        ),
        Ratio::at_most(
            "scale_table_cpu",
            growth(RELAY, Of::Rules.name(long), Of::Rules.name(short)),
            FLAT,
            Some(FLATTER),
        ),
        Ratio::at_most(
            "scale_rules_memory",
            growth(EACH, Of::Services.name(much), Of::Services.name(some)),
            FLAT,
            Some(FLATTER),
        ),
    ];
    Ok(Report {
        mode: "scale",
        about: format!(
            "relay CPU per request and memory; {} rounds of {} s at full speed for each size. \"one of N\": all requests to one agent, the others idle; \"all N\": to a service that all agents serve",
            options.rounds, options.seconds
        ),
        tables: vec![vec![(RELAY, 1), (RATE, 0), (P50, 0), (P99, 0), (MEMORY, 1), (IDLE, 1), (EACH, 2)]],
        samples,
        notes,
        ratios,
        failures,
    })
}
