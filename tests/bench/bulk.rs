//! The mode `bulk`: one large body down and one up, on one connection: over HTTPS through Postern, over TLS to the backend directly, and
//! on one stream of raw quinn, which is the most that a tunnel over it could carry. nginx directly sends the same file, for comparison.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;

use crate::Options;
use crate::contest::{self, AGENT, DOWN, DOWN_CPU, Part, RELAY, Score, UP, UP_CPU, order};
use crate::load::bulk::{self, MIB, Way};
use crate::load::dial::Via;
use crate::peers::backend::Backend;
use crate::peers::quinn::Quinn;
use crate::ratio::Ratio;
use crate::report::Report;
use crate::site::config::Extra;
use crate::site::{Ground, Site};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Direct,
    Nginx,
    Quinn,
    Postern,
}

const TARGETS: [Target; 4] = [Target::Direct, Target::Nginx, Target::Quinn, Target::Postern];

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "TLS, backend",
            Self::Nginx => "TLS, nginx",
            Self::Quinn => "raw quinn",
            Self::Postern => "Postern, https",
        }
    }
}

pub(crate) async fn run(options: &Options, cores: usize) -> Result<Report> {
    // Its port goes into agent.toml, so it comes first.
    let ground = Ground::new()?;
    let backend = Backend::start(&ground.facts).await?;
    let mut extra = Extra::default();
    extra.service("bulk", &format!("http://{}", backend.plain));
    let site = Site::start(ground, cores, &extra).await?;
    contest::check(&site, "/files/1k").await?;
    let quinn = Quinn::start(&site).await?;
    let bytes = options.mib * MIB;
    // nginx's answer is a file without content: holes read as zeros, and take no room.
    std::fs::create_dir_all(site.path("html/bytes"))?;
    std::fs::File::create(site.path(&format!("html/bytes/{bytes}")))?.set_len(bytes)?;
    let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let tls = Arc::new(site.tls()?);
    let direct = Via::Tls { address: backend.tls, tls: tls.clone() };
    let nginx = Via::Tls { address: local(site.facts.tls), tls: tls.clone() };
    let postern = Via::Tls { address: local(site.facts.relay), tls };
    let mut score = Score::default();
    for round in 1..=options.rounds {
        for target in order(&TARGETS, round) {
            for way in [Way::Down, Way::Up] {
                let (name, mib) = (target.name(), options.mib);
                match target {
                    Target::Direct => {
                        score.transfer(name, way, mib, &[], bulk::run(&direct, "", None, way, bytes)).await?;
                    }
                    // It would answer before it has read a body.
                    Target::Nginx if way == Way::Up => {}
                    Target::Nginx => {
                        score.transfer(name, way, mib, &[], bulk::run(&nginx, "", None, way, bytes)).await?;
                    }
                    Target::Quinn => score.transfer(name, way, mib, &[], quinn.bulk(way, bytes)).await?,
                    Target::Postern => {
                        let parts = [Part(RELAY, &site.relay), Part(AGENT, &site.agent)];
                        let transfer = bulk::run(&postern, "/bulk", Some(&site.token), way, bytes);
                        score.transfer(name, way, mib, &parts, transfer).await?;
                    }
                }
            }
        }
    }
    let Score { samples, notes, failures } = score;
    let [direct, _, quinn, postern] = TARGETS.map(Target::name);
    let ratios = vec![
        Ratio::at_least("bulk_down_quinn", samples.ratio(DOWN, postern, quinn), 0.5, Some(0.75)),
        Ratio::at_least("bulk_up_quinn", samples.ratio(UP, postern, quinn), 0.5, Some(0.75)),
        Ratio::at_least("bulk_down_direct", samples.ratio(DOWN, postern, direct), 0.20, None),
        Ratio::at_least("bulk_up_direct", samples.ratio(UP, postern, direct), 0.20, None),
    ];
    Ok(Report {
        mode: "bulk",
        about: format!(
            "{} MiB each way on one connection or stream, {} rounds; quinn: mutual TLS, MTU 1452, GSO",
            options.mib, options.rounds
        ),
        tables: vec![vec![(DOWN, 0), (UP, 0), (DOWN_CPU, 0), (UP_CPU, 0)]],
        samples,
        notes,
        ratios,
        failures,
    })
}
