//! Has agents try their upstreams: takes a service; gives what each of its agents saw, for whoever asks why calls fail. Bounded in number and
//! in time; an answer counts only from the tunnel that was asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use postern_base::id::{AgentName, InstanceId, ServiceName};
use postern_base::sync::lock;
use postern_wire::control::RelayMessage;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::registry::{Registry, Tunnel};

/// An agent gives an upstream 3 s to connect and what its file says for the first byte; a doctor does not wait for ever.
const ANSWER: Duration = Duration::from_secs(10);
/// Probes under way: every agent of every service of one large doctor's round, and no more.
const UNDER_WAY: usize = 1024;
/// Characters of an agent's words that are shown.
const DETAIL: usize = 300;

/// What an agent saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    pub reached: bool,
    /// In the agent's words, harmless on a terminal.
    pub detail: String,
    pub took: Duration,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("it has no usable tunnel")]
    Down,
    #[error("it is too old to try its upstreams when asked, or too busy to hear it: update it")]
    Unheard,
    #[error("it did not answer within {} s", ANSWER.as_secs())]
    Late,
    #[error("too many are being tried at once")]
    Busy,
}

/// One agent's answer.
#[derive(Debug)]
pub struct Reply {
    pub agent: AgentName,
    /// None where no instance has a tunnel.
    pub instance: Option<InstanceId>,
    pub outcome: Result<Probed, ProbeError>,
}

#[derive(Debug)]
struct Waiting {
    /// The id of the tunnel that was asked.
    tunnel: u64,
    told: oneshot::Sender<Probed>,
}

/// The probes under way.
#[derive(Debug, Default)]
pub struct Probes {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

/// Takes a probe out, however it ended.
struct Asked<'a>(&'a Probes, u64);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Probes {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        // Every change is one insertion or removal.
        lock(&self.waiting)
    }

    /// Has each of these agents try a service's upstream, once for every instance.
    pub async fn service(
        &self,
        registry: &Registry,
        agents: &[AgentName],
        service: &ServiceName,
    ) -> Vec<Reply> {
        let (tunnels, mut all) = (registry.all(), Vec::new());
        for agent in agents {
            let mut instances: HashMap<InstanceId, Arc<Tunnel>> = HashMap::new();
            let own = |tunnel: &Arc<Tunnel>| tunnel.agent == *agent && tunnel.is_usable();
            for tunnel in tunnels.iter().filter(|tunnel| own(tunnel)).cloned() {
                instances.entry(tunnel.instance.clone()).or_insert(tunnel);
            }
            if instances.is_empty() {
                all.push((agent.clone(), None));
            }
            all.extend(instances.into_values().map(|tunnel| (agent.clone(), Some(tunnel))));
        }
        let asked = all.into_iter().map(async |(agent, tunnel)| match tunnel {
            None => Reply { agent, instance: None, outcome: Err(ProbeError::Down) },
            Some(tunnel) => {
                let instance = Some(tunnel.instance.clone());
                Reply { agent, instance, outcome: self.ask(&tunnel, service).await }
            }
        });
        join_all(asked).await
    }

    async fn ask(&self, tunnel: &Tunnel, service: &ServiceName) -> Result<Probed, ProbeError> {
        let (asked, answer) = self.begin(tunnel.id())?;
        if !tunnel.say(RelayMessage::Probe { id: asked.1, service: service.to_string() }).await {
            return Err(ProbeError::Unheard);
        }
        timeout(ANSWER, answer).await.ok().and_then(Result::ok).ok_or(ProbeError::Late)
    }

    fn begin(&self, tunnel: u64) -> Result<(Asked<'_>, oneshot::Receiver<Probed>), ProbeError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (told, answer) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.len() >= UNDER_WAY {
            return Err(ProbeError::Busy);
        }
        waiting.insert(id, Waiting { tunnel, told });
        Ok((Asked(self, id), answer))
    }

    /// An agent answered over this tunnel. What nobody asked there is dropped.
    pub fn answered(&self, tunnel: &Tunnel, id: u64, reached: bool, detail: &str, took_us: u64) {
        self.tell(tunnel.id(), id, reached, detail, took_us);
    }

    fn tell(&self, tunnel: u64, id: u64, reached: bool, detail: &str, took_us: u64) {
        let mut waiting = self.lock();
        if waiting.get(&id).is_none_or(|asked| asked.tunnel != tunnel) {
            return;
        }
        if let Some(asked) = waiting.remove(&id) {
            let detail = detail.chars().take(DETAIL).map(|c| if c.is_control() { ' ' } else { c }).collect();
            // Whoever asked may have gone.
            let _ = asked.told.send(Probed { reached, detail, took: Duration::from_micros(took_us) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_from_the_tunnel_that_was_asked_and_once() {
        let probes = Probes::default();
        let (asked, mut answer) = probes.begin(7).unwrap();
        probes.tell(8, asked.1, true, "another agent's word", 1);
        assert!(answer.try_recv().is_err());
        probes.tell(7, asked.1 + 1, true, "nobody asked this", 1);
        probes.tell(7, asked.1, false, &format!("no\r\n\u{1b}[2J{}", "x".repeat(1000)), 1500);
        probes.tell(7, asked.1, true, "once more", 1);
        let told = answer.try_recv().unwrap();
        assert_eq!((told.reached, told.took), (false, Duration::from_micros(1500)));
        assert!(told.detail.starts_with("no   [2Jx") && told.detail.chars().count() == DETAIL);
    }

    #[test]
    fn what_is_under_way_is_bounded_and_goes_with_whoever_asked() {
        let probes = Probes::default();
        let all: Vec<_> = (0..UNDER_WAY).map(|_| probes.begin(1).unwrap()).collect();
        assert!(matches!(probes.begin(1), Err(ProbeError::Busy)));
        drop(all);
        assert!(probes.begin(1).is_ok());
        assert!(probes.lock().is_empty());
    }
}
