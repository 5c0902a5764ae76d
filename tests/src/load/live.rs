//! Streams that live through what is done to the path: a download that trickles, a WebSocket and a TCP connection in conversation.
//! Each says at its end how much went through and how long the longest silence was; a false byte or a break is an error.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::act::Talk;
use super::{Kind, Target};
use crate::http::{Http, empty, request};
use crate::pattern::Check;
use crate::wait;

/// Between two messages, or two pieces of the download.
const PACE: Duration = Duration::from_millis(100);
/// A live stream that says nothing for longer than this, with all that a test does to it, is dead.
const SILENCE: Duration = Duration::from_secs(30);

/// What a live stream went through.
#[derive(Debug, Clone, Copy, Default)]
pub struct Story {
    /// Messages there and back, or pieces received.
    pub exchanges: u64,
    pub longest_silence: Duration,
}

/// A stream that goes on until [`Live::finish`].
#[derive(Debug)]
pub struct Live {
    what: &'static str,
    stop: CancellationToken,
    /// One task, which ends with this.
    task: JoinSet<Result<Story>>,
}

enum Stream {
    Download(Incoming, Check),
    Talk(Talk, u64),
}

impl Live {
    /// Opens a trickling download; it has begun when this returns.
    pub async fn download(target: &Target) -> Result<Self> {
        let http = Http::h2(target.roots.clone())?;
        let path = format!("/stream/{}", super::next_id(Kind::Get));
        let (url, bytes, pause) = (target.at(&path), u32::MAX, PACE.as_millis());
        let url = format!("{url}?bytes={bytes}&step=100&pause={pause}");
        let answer = http.stream(request("GET", &url, Some(&target.token)).body(empty())?).await?;
        anyhow::ensure!(answer.status() == 200, "{}", answer.status());
        Ok(Self::run("the download", Stream::Download(answer.into_body(), Check::default())))
    }

    /// Opens a conversation: [`Kind::Socket`] or [`Kind::Tcp`].
    pub async fn talk(kind: Kind, target: &Target) -> Result<Self> {
        let http = Http::h1(target.roots.clone())?;
        let talk = Talk::open(kind, &http, target).await?;
        Ok(Self::run(
            if kind == Kind::Socket { "the WebSocket" } else { "the TCP stream" },
            Stream::Talk(talk, 0),
        ))
    }

    fn run(what: &'static str, mut stream: Stream) -> Self {
        let stop = CancellationToken::new();
        let end = stop.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut story = Story::default();
            while !end.is_cancelled() {
                let start = Instant::now();
                let done = wait::within("it says something", SILENCE, stream.once()).await?;
                done.with_context(|| format!("broke after {story:?} and {:?}", start.elapsed()))?;
                story.exchanges += 1;
                story.longest_silence = story.longest_silence.max(start.elapsed());
            }
            Ok(story)
        });
        Self { what, stop, task }
    }

    /// Ends it and says what it went through.
    ///
    /// # Errors
    /// It broke, fell silent for too long, or gave a false byte.
    pub async fn finish(mut self) -> Result<Story> {
        self.stop.cancel();
        let story = self.task.join_next().await.context("no task")?;
        story?.context(self.what)
    }
}

impl Stream {
    async fn once(&mut self) -> Result<()> {
        match self {
            Self::Download(body, check) => {
                let frame = body.frame().await.context("it ended")??;
                check.feed(frame.data_ref().map_or(&[][..], |data| data))
            }
            Self::Talk(talk, number) => {
                *number += 1;
                talk.exchange(format!("message {number}").as_bytes()).await?;
                tokio::time::sleep(PACE).await;
                Ok(())
            }
        }
    }
}
