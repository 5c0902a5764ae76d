//! Takes an HTTP/1.1 target and a rate; gives how long answers take when requests come at their own pace, whether or not the ones before
//! are answered (open loop). The clock of each request starts when it was due, so that a stall is seen by all who waited for it.
//! Tokio's timers are good to a millisecond, which is one whole interval: the kernel's timerfd keeps the pace.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use postern_tests::wait;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;

use super::dial::Via;
use super::{CONNECTIONS, Load, quantile};

type Sender = SendRequest<Empty<Bytes>>;

/// One request's outcome: its connection, how long it took in microseconds, and its status.
type Done = Result<(Sender, u32, StatusCode)>;

/// What is asked: `host` names the target, `path` may be anything.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) token: Option<String>,
}

/// Sends `rate` requests a second for `seconds`.
pub(crate) async fn run(via: &Via, ask: &Ask, rate: u32, seconds: u32) -> Result<Load> {
    let (via, ask) = (via.clone(), ask.clone());
    // A thread of its own: nothing else may make it late.
    let running = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(pace(&via, &ask, rate, seconds))
    });
    let limit = Duration::from_secs(seconds.into()) + wait::SOON * 2;
    wait::within("requests at a fixed pace", limit, running).await??
}

async fn pace(via: &Via, ask: &Ask, rate: u32, seconds: u32) -> Result<Load> {
    let mut drivers = JoinSet::new();
    let mut idle: Vec<Sender> = Vec::new();
    for _ in 0..CONNECTIONS {
        let (sender, driver) = handshake(TokioIo::new(via.dial().await?)).await?;
        drivers.spawn(driver);
        idle.push(sender);
    }
    let total = rate * seconds;
    let interval = Duration::from_secs(1) / rate;
    let mut times = Vec::with_capacity(total as usize);
    let mut requests: JoinSet<Done> = JoinSet::new();
    let mut overdue: VecDeque<Instant> = VecDeque::new();
    let (mut due, mut broken, mut refused) = (0, 0, 0);
    let start = Instant::now();
    let clock = every(interval)?;
    while due < total || !requests.is_empty() {
        tokio::select! {
            ticks = ticks(&clock), if due < total => {
                for _ in 0..ticks?.min(u64::from(total - due)) {
                    due += 1;
                    overdue.push_back(start + interval * due);
                }
            }
            Some(done) = requests.join_next() => match done? {
                Ok((sender, time, status)) => {
                    idle.push(sender);
                    refused += u64::from(status != StatusCode::OK);
                    times.push(time);
                }
                Err(_) => broken += 1,
            },
        }
        while !overdue.is_empty()
            && let Some(sender) = idle.pop()
        {
            let Some(scheduled) = overdue.pop_front() else { break };
            requests.spawn(send(sender, request(ask)?, scheduled));
        }
        anyhow::ensure!(!(idle.is_empty() && requests.is_empty()), "all connections broke");
    }
    #[expect(clippy::cast_precision_loss, reason = "far from 2^53 requests")]
    let per_second = times.len() as f64 / start.elapsed().as_secs_f64();
    let requests = times.len() as u64;
    let (p50_us, p99_us) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
    Ok(Load { requests, per_second, p50_us, p99_us, broken, refused, bytes_each: None })
}

fn request(ask: &Ask) -> Result<Request<Empty<Bytes>>> {
    let mut builder = Request::get(&ask.path).header("host", &ask.host);
    if let Some(token) = &ask.token {
        builder = builder.header("authorization", format!("Bearer {token}"));
    }
    Ok(builder.body(Empty::new())?)
}

async fn send(mut sender: Sender, request: Request<Empty<Bytes>>, scheduled: Instant) -> Done {
    wait::within("a connection's turn", wait::SOON, sender.ready()).await??;
    let answer = wait::within("an answer", wait::SOON, sender.send_request(request)).await??;
    let status = answer.status();
    wait::within("an answer's body", wait::SOON, answer.into_body().collect()).await??;
    Ok((sender, u32::try_from(scheduled.elapsed().as_micros())?, status))
}

#[expect(
    deprecated,
    reason = "its successor is unsafe to call; the descriptor is owned here alone and never replaced"
)]
fn every(interval: Duration) -> Result<AsyncFd<OwnedFd>> {
    let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let interval = Timespec::try_from(interval).ok().context("no such interval")?;
    timerfd_settime(
        &fd,
        TimerfdTimerFlags::empty(),
        &Itimerspec { it_interval: interval, it_value: interval },
    )?;
    Ok(AsyncFd::new(fd)?)
}

/// How often the timer has gone off since the last call; at least once.
async fn ticks(timer: &AsyncFd<OwnedFd>) -> Result<u64> {
    loop {
        let mut ready = timer.readable().await?;
        let mut count = [0; 8];
        let read = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut count)?));
        if let Ok(read) = read {
            read?;
            return Ok(u64::from_ne_bytes(count));
        }
    }
}
