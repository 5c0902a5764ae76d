//! The mode `tcp`: a TCP service through Postern, as the `postern` client opens it and through `postern forward`; through rathole's three
//! transports; and nginx directly. Small exchanges over 32 connections, then one large body each way. Raw quinn's exchanges are shown too.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use postern_tests::client::Cli;
use postern_tests::process::Program;
use postern_tests::wait;

use crate::Options;
use crate::contest::{
    self, AGENT, BACKEND, CLIENT, DOWN, DOWN_CPU, MEMORY, P50, P99, PROXY, Part, RATE, RELAY, Score, UP,
    UP_CPU, order,
};
use crate::figures::Samples;
use crate::load::bulk::{self, MIB, Way};
use crate::load::dial::Via;
use crate::load::{CONNECTIONS, exchange};
use crate::peers::backend::Backend;
use crate::peers::or_note;
use crate::peers::quinn::Quinn;
use crate::peers::rathole::{Rathole, Transport};
use crate::ratio::Bound::AtLeast;
use crate::ratio::Ratio;
use crate::report::Report;
use crate::site::config::Extra;
use crate::site::{BODY, Ground, Site};

const WARM_UP: u32 = 1;

/// One way to both upstreams.
struct Target<'a> {
    name: &'static str,
    /// To nginx, and to the backend of large bodies.
    small: Via,
    large: Via,
    parts: Vec<Part<'a>>,
}

const DIRECT: &str = "nginx, direct";
const POSTERN: &str = "Postern";
const FORWARD: &str = "Postern forward";
const QUINN: &str = "raw quinn, stream each";

pub(crate) async fn run(options: &Options, cores: usize) -> Result<Report> {
    let mut score = Score::default();
    let ground = Ground::new()?;
    let backend = Backend::start(&ground.facts).await?;
    let small = SocketAddr::from(([127, 0, 0, 1], ground.facts.plain));
    let mut extra = Extra::default();
    extra.service("small", &format!("tcp://{small}"));
    extra.service("large", &format!("tcp://{}", backend.plain));
    let site = Site::start(ground, cores, &extra).await?;
    let quinn = Quinn::start(&site).await?;
    let forward = Forward::start(&site).await?;
    let mut tunnels = Vec::new();
    for transport in Transport::ALL {
        let started = Rathole::start(&site, transport, &[small, backend.plain]).await;
        tunnels.extend(or_note(transport.name(), started, &mut score.notes).map(|peer| (transport, peer)));
    }

    contest::check(&site, "/files/1k").await?;
    let narrow = through(&site, "small", &site.narrow)?.dial().await;
    anyhow::ensure!(narrow.is_err(), "a token without the scope opened a TCP service");
    let targets = targets(&site, small, backend.plain, &forward, &tunnels)?;
    let threads = cores.min(CONNECTIONS);
    for target in &targets {
        let load = exchange::run(&target.small, threads, WARM_UP);
        score.measure(target.name, &target.parts, None, load).await.with_context(|| target.name)?;
    }
    score = score.cleared();
    let indexes: Vec<usize> = (0..targets.len()).collect();
    for round in 1..=options.rounds {
        for index in order(&indexes, round) {
            let Target { name, small, large, parts } = &targets[index];
            let load = exchange::run(small, threads, options.seconds);
            score.measure(name, parts, None, load).await?;
            let proxies: Vec<Part<'_>> = parts.iter().copied().filter(|part| part.0 != BACKEND).collect();
            for way in [Way::Down, Way::Up] {
                let transfer = bulk::run(large, "", None, way, options.mib * MIB);
                score.transfer(name, way, options.mib, &proxies, transfer).await?;
            }
        }
        score.measure(QUINN, &[], None, quinn.exchange(options.seconds)).await?;
    }
    let Score { samples, notes, failures } = score;
    Ok(Report {
        mode: "tcp",
        about: format!(
            "{CONNECTIONS} connections, request and answer of {BODY} bytes, {} rounds of {} s; {} MiB each way on one connection. Postern: TLS 1.3 from the caller to the relay, QUIC from there to the agent; rathole: no TLS from the caller",
            options.rounds, options.seconds, options.mib
        ),
        tables: vec![
            vec![
                (RATE, 0),
                (PROXY, 1),
                (RELAY, 1),
                (AGENT, 1),
                (CLIENT, 1),
                (BACKEND, 1),
                (P50, 0),
                (P99, 0),
                (MEMORY, 0),
            ],
            vec![(DOWN, 0), (UP, 0), (DOWN_CPU, 0), (UP_CPU, 0)],
        ],
        ratios: ratios(&samples),
        samples,
        notes,
        failures,
    })
}

/// To a TCP service as the client opens it.
fn through(site: &Site, service: &str, token: &str) -> Result<Via> {
    Ok(Via::Postern {
        address: SocketAddr::from(([127, 0, 0, 1], site.facts.relay)),
        tls: Arc::new(site.tls()?),
        service: service.to_owned(),
        token: token.to_owned(),
    })
}

fn targets<'a>(
    site: &'a Site,
    small: SocketAddr,
    large: SocketAddr,
    forward: &'a Forward,
    tunnels: &'a [(Transport, Rathole)],
) -> Result<Vec<Target<'a>>> {
    let nginx = || site.nginx.iter().map(|program| Part(BACKEND, program));
    let postern = [Part(RELAY, &site.relay), Part(AGENT, &site.agent)];
    let mut targets = vec![
        Target { name: DIRECT, small: Via::Plain(small), large: Via::Plain(large), parts: nginx().collect() },
        Target {
            name: POSTERN,
            small: through(site, "small", &site.token)?,
            large: through(site, "large", &site.token)?,
            parts: postern.into_iter().chain(nginx()).collect(),
        },
        Target {
            name: FORWARD,
            small: Via::Plain(forward.small),
            large: Via::Plain(forward.large),
            parts: postern.into_iter().chain([Part(CLIENT, &forward.client)]).chain(nginx()).collect(),
        },
    ];
    for (transport, Rathole { server, client, ports }) in tunnels {
        let [small, large] = ports[..] else { anyhow::bail!("rathole has {} ports", ports.len()) };
        targets.push(Target {
            name: transport.name(),
            small: Via::Plain(small),
            large: Via::Plain(large),
            parts: [Part(RELAY, server), Part(AGENT, client)].into_iter().chain(nginx()).collect(),
        });
    }
    Ok(targets)
}

fn ratios(samples: &Samples) -> Vec<Ratio> {
    let [plain, tls, noise] = Transport::ALL.map(Transport::name);
    let to = |figure: &str, peer: &str| samples.ratio(figure, POSTERN, peer);
    vec![
        Ratio::at_least("tcp_rps_rathole_noise", to(RATE, noise), 1.2, None),
        Ratio::at_least("tcp_rps_rathole_tls", to(RATE, tls), 1.2, None),
        Ratio::wish("tcp_rps_rathole_plain", to(RATE, plain), AtLeast(1.0)),
        Ratio::at_least("tcp_down_rathole_noise", to(DOWN, noise), 1.3, None),
        Ratio::at_least("tcp_down_rathole_tls", to(DOWN, tls), 1.3, None),
        Ratio::wish("tcp_down_rathole_plain", to(DOWN, plain), AtLeast(0.85)),
        Ratio::at_least("tcp_up_rathole_noise", to(UP, noise), 1.3, None),
        Ratio::at_least("tcp_up_rathole_tls", to(UP, tls), 1.3, None),
        Ratio::wish("tcp_up_rathole_plain", to(UP, plain), AtLeast(0.85)),
    ]
}

/// `postern forward` of both services.
struct Forward {
    client: Program,
    small: SocketAddr,
    large: SocketAddr,
}

impl Forward {
    async fn start(site: &Site) -> Result<Self> {
        let local = || Ok::<_, anyhow::Error>(SocketAddr::from(([127, 0, 0, 1], wait::free_port()?)));
        let (small, large) = (local()?, local()?);
        let relay = site.facts.address();
        let cli = Cli::new(&site.path("home"), &relay, &site.pki.ca_file())?;
        let specs = [format!("{}:small", small.port()), format!("{}:large", large.port())];
        let mut command = cli.command(&["--relay", &relay, "forward", &specs[0], &specs[1]])?;
        command.env("POSTERN_TOKEN", &site.token);
        let mut client = cli.start_command(command, "forward")?;
        client.wait_lines("Forwarding ", 2, wait::SOON).await?;
        Ok(Self { client, small, large })
    }
}
