//! A running relay: what all rooms share, how it starts, reloads and ends. Rooms read one immutable [`Snapshot`] per request.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use postern_base::admin::AdminError;
use postern_base::audit::Room;
use postern_base::config::ConfigError;
use postern_base::id::ServiceName;
use postern_base::shutdown::Shutdown;
use postern_base::sync::lock;
use postern_gate::policy::Policy;
use postern_gate::token::Issuers;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::audit::{Audit, AuditError};
use crate::config::outline::Outline;
use crate::config::{self, Loaded};
use crate::enroll::{Enrollment, JoinLimits, Who};
use crate::metrics::Metrics;
use crate::onward::{KeysError, Onward};
use crate::public::admission::Admission;
use crate::public::certificate::PublicCertificate;
use crate::request::limit::counts::Counts;
use crate::request::route::Routes;
use crate::session::{Lock, Session};
use crate::settings::Settings;
use crate::tunnel::handshake::AgentTls;
use crate::tunnel::probe::Probes;
use crate::tunnel::registry::{Registry, TunnelInfo};

mod manager;
mod start;

pub use start::run;

/// How long after a start agents may still be on their way back: most are there within a second, a thousand within two or three.
const SETTLING: Duration = Duration::from_secs(5);

/// Everything that one reload exchanges at once.
#[derive(Debug)]
pub struct Snapshot {
    pub settings: Arc<Settings>,
    pub policy: Arc<Policy>,
    pub issuers: Arc<Issuers>,
    pub routes: Routes,
    /// What was written, for whoever asks what changed.
    pub outline: Arc<Outline>,
}

/// Why a relay did not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error(
        "cannot listen on {address} ({what}): {source}; choose another port under [listen], or stop what uses it"
    )]
    Listen { what: &'static str, address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("the keys of the assertion: {0}")]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Enrollment(#[from] crate::enroll::EnrollError),
    #[error("a relay already runs with this state directory: stop it first (postern-relay drain --wait)")]
    AlreadyRuns,
    #[error("{0}")]
    Certificate(String),
    #[error("issuers: {0}")]
    Issuers(String),
    #[error(transparent)]
    Tls(#[from] postern_wire::tls::TlsError),
    #[error(transparent)]
    Sockets(#[from] manager::SocketsError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("{0}")]
    Runtime(#[from] std::io::Error),
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    path: PathBuf,
    started: SystemTime,
    settles: Instant,
    /// Counts tunnels that became usable.
    arrivals: watch::Sender<u64>,
    current: ArcSwap<Snapshot>,
    registry: Registry,
    enrollment: Arc<Enrollment>,
    joins: JoinLimits,
    audit: Audit,
    session: Session,
    onward: Onward,
    metrics: Metrics,
    admission: Admission,
    counts: Counts,
    certificate: PublicCertificate,
    agents: AgentTls,
    probes: Probes,
    shutdown: Shutdown,
    /// One reload at a time, so that the last file read is the one in force.
    reloading: std::sync::Mutex<()>,
}

impl Relay {
    fn new(
        path: PathBuf,
        loaded: Loaded,
        enrollment: Enrollment,
        now: SystemTime,
    ) -> Result<Self, RelayError> {
        let settings = loaded.settings;
        let metrics = Metrics::default();
        // After the database, which says better than the chain that another relay runs here.
        let audit = Audit::open(&settings.audit, &settings.state)?;
        audit.event(
            "start",
            serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "url": settings.url.to_string() }),
        );
        let issuers =
            Issuers::new(settings.issuers.clone()).map_err(|e| RelayError::Issuers(e.to_string()))?;
        issuers.check_secrets().map_err(|e| RelayError::Issuers(e.to_string()))?;
        let issuers = issuers.taking_proofs(settings.dpop.clone(), now);
        let locks = enrollment.locks(now);
        for void in locks.iter().filter_map(|lock| lock.fits(&settings, None).err()) {
            tracing::warn!("{void}");
        }
        let certificate = PublicCertificate::load(settings.tls.cert(), settings.tls.key())
            .map_err(RelayError::Certificate)?;
        let agents = AgentTls::new(&enrollment, settings.name.clone(), now)?;
        let snapshot = Snapshot {
            routes: Routes::new(&settings),
            policy: loaded.policy,
            issuers: Arc::new(issuers),
            settings: settings.clone(),
            outline: loaded.outline,
        };
        Ok(Self {
            path,
            started: now,
            settles: Instant::now() + SETTLING,
            arrivals: watch::Sender::new(0),
            current: ArcSwap::from_pointee(snapshot),
            registry: Registry::default(),
            session: Session::new(settings.limits.workers, &locks, now),
            enrollment: Arc::new(enrollment),
            joins: JoinLimits::default(),
            audit,
            onward: Onward::open(&settings.state, now)?,
            metrics,
            admission: Admission::new(&settings.limits),
            counts: Counts::new(std::time::Instant::now()),
            certificate,
            agents,
            probes: Probes::default(),
            shutdown: Shutdown::new(),
            reloading: std::sync::Mutex::new(()),
        })
    }

    /// The snapshot in force; a request reads it once.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    pub fn current(&self) -> &ArcSwap<Snapshot> {
        &self.current
    }

    pub fn policy(&self) -> Arc<Policy> {
        self.current.load().policy.clone()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn started(&self) -> SystemTime {
        self.started
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn enrollment(&self) -> &Arc<Enrollment> {
        &self.enrollment
    }

    pub fn joins(&self) -> &JoinLimits {
        &self.joins
    }

    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// What runs, and what is locked.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// What goes on to services beside requests.
    pub fn onward(&self) -> &Onward {
        &self.onward
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// What callers used of rules' rates and quotas.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    pub fn certificate(&self) -> &PublicCertificate {
        &self.certificate
    }

    /// What agents see in a handshake.
    pub fn agents(&self) -> &AgentTls {
        &self.agents
    }

    /// Upstreams that agents are trying for us.
    pub fn probes(&self) -> &Probes {
        &self.probes
    }

    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    pub fn tunnels(&self) -> Vec<TunnelInfo> {
        self.registry.tunnels()
    }

    /// A tunnel became usable.
    pub fn arrived(&self) {
        self.arrivals.send_modify(|count| *count += 1);
    }

    /// Shortly after a start waits until a tunnel carries this service: callers who waited for the relay are not turned away because its
    /// agents take a moment longer.
    pub async fn settle(&self, service: &ServiceName) {
        if Instant::now() >= self.settles {
            return;
        }
        // Boxed: hardly any request waits.
        Box::pin(async {
            let mut arrivals = self.arrivals.subscribe();
            while self.registry.agents_of(service).is_empty()
                && matches!(timeout_at(self.settles, arrivals.changed()).await, Ok(Ok(())))
            {}
        })
        .await;
    }

    /// Cuts every live tunnel of an agent, or of one of its instances, that was suspended or removed; says how many.
    pub fn cut_agent(&self, who: &Who) -> usize {
        let tunnels = self.registry.of_agent(who);
        for tunnel in &tunnels {
            tunnel.sever();
        }
        tunnels.len()
    }

    /// Whether a request sent now would be served.
    pub fn is_ready(&self) -> bool {
        !self.shutdown.is_draining() && self.audit.is_healthy() && self.audit.room() == Room::Enough
    }

    /// Reads the file again: parse, validate, run its tests, swap. Gives what changed, and what is probably not meant.
    ///
    /// # Errors
    /// What is wrong with the file; the old configuration stays in force.
    pub fn reload(&self) -> Result<(Vec<String>, Vec<String>), Vec<ConfigError>> {
        let _one = lock(&self.reloading);
        manager::reloading();
        let outcome = self.try_reload();
        manager::ready();
        let (reason, detail) = match &outcome {
            Ok((changes, _)) => ("ok", serde_json::json!({ "outcome": "ok", "changes": changes })),
            Err(errors) => {
                let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                ("refused", serde_json::json!({ "outcome": "refused", "errors": errors }))
            }
        };
        self.metrics.reloads.get_or_create(&crate::metrics::ReasonLabels { reason }).inc();
        self.audit.event("reload", detail);
        outcome
    }

    fn try_reload(&self) -> Result<(Vec<String>, Vec<String>), Vec<ConfigError>> {
        let loaded = config::load(&self.path)?;
        let old = self.snapshot();
        let refuse = |message: String| {
            vec![ConfigError { file: self.path.display().to_string(), place: None, message }]
        };
        let fixed = loaded.settings.needs_restart(&old.settings);
        if !fixed.is_empty() {
            let keys = fixed.join(", ");
            return Err(refuse(format!(
                "{keys}: these keys change only with a restart; everything else stays as it was"
            )));
        }
        let issuers =
            old.issuers.rebuild(loaded.settings.issuers.clone()).map_err(|e| refuse(e.to_string()))?;
        issuers.check_secrets().map_err(|e| refuse(e.to_string()))?;
        let issuers = issuers.taking_proofs(loaded.settings.dpop.clone(), SystemTime::now());
        let changes = loaded.outline.changes_since(&old.outline);
        let snapshot = Snapshot {
            routes: Routes::new(&loaded.settings),
            policy: loaded.policy,
            issuers: Arc::new(issuers),
            settings: loaded.settings,
            outline: loaded.outline,
        };
        let snapshot = Arc::new(snapshot);
        let locks = self.session.holding_locks();
        let voids = |lock: &Lock| lock.fits(&snapshot.settings, Some(&old.settings)).err();
        let void: Vec<_> = self.enrollment.locks(SystemTime::now()).iter().filter_map(voids).collect();
        if !void.is_empty() {
            return Err(void.iter().flat_map(|error| refuse(error.to_string())).collect());
        }
        self.current.store(snapshot.clone());
        drop(locks);
        self.registry.rebuild(&self.current);
        self.admission.apply(&snapshot.settings.limits);
        let cut = self.session.after_reload(&snapshot, &old);
        let cut =
            (cut > 0).then(|| format!("{cut} running request(s) and stream(s) without a permit were cut"));
        let mut warnings = loaded.warnings;
        warnings.extend(snapshot.settings.without_agents(&self.enrollment));
        Ok((changes.into_iter().chain(cut).collect(), warnings))
    }
}
