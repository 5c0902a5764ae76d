//! `connect`: standard input and output become a TCP service, byte for byte; nothing else is printed there. Each end is passed on by
//! itself; it is over when both have come, with exit code 0, or when something broke.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use postern_base::id::ServiceName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Context;
use super::forward::means;
use crate::channel::Opener;
use crate::failure::{Exit, Failure};
use crate::forward::means::Means;
use crate::forward::tcp::expired;
use crate::output::Output;
use crate::splice::{Broken, splice};

pub(super) async fn run(context: &Context, service: &ServiceName, out: &Output) -> Result<u8, Failure> {
    let means = means(context, out)?;
    let opener = find(context, service, &means).await?;
    let mut channel = opener.open().await.map_err(|error| opener.failure(error))?;
    let mut stdio = Stdio::take().map_err(|e| Failure::new(Exit::Other, format!("standard output: {e}")))?;
    let carried = tokio::select! {
        carried = splice(&mut stdio, &mut channel.stream, &channel.early) => carried,
        never = means.leases.keep() => match never {},
    };
    match carried {
        Ok(()) => Ok(0),
        // The far side had said its last word: what was still sent to it is nobody's loss.
        Err(Broken::Far(_)) if stdio.output.is_none() => Ok(0),
        Err(Broken::Far(_)) if channel.is_expired() => Err(expired(&opener)),
        Err(Broken::Far(error)) => Err(match opener.why_ended().await {
            Some(failure) => failure,
            None => Failure::new(Exit::Other, broke_off(service, &error))
                .fix("see whether it is up: postern ls; then try again"),
        }),
        Err(Broken::Local(error)) => {
            Err(Failure::new(Exit::Other, format!("standard input or output: {error}")))
        }
    }
}

fn broke_off(service: &ServiceName, error: &io::Error) -> String {
    // TLS without its own end: whoever carries the stream cut it.
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return format!("the connection to {service} broke off: the relay ended it");
    }
    format!("the connection to {service} broke off: {error}")
}

/// One that is not listed is opened all the same, so that the relay itself says why not.
async fn find(context: &Context, service: &ServiceName, means: &Means) -> Result<Opener, Failure> {
    let relay = &context.relay;
    let catalogue = context.ask(|pass| async move { relay.services(&pass).await }).await?;
    match catalogue.services.iter().find(|found| found.name == *service) {
        Some(found) if found.kind.raw() == "http" => {
            Err(Failure::new(Exit::Other, format!("{service} is an HTTP service, not a TCP one"))
                .fix(format!("use: postern forward {service}, or: postern curl {service}/")))
        }
        found => Ok(means.opener(service.clone(), found.and_then(|found| found.resource.clone()))),
    }
}

/// Standard input and output without buffers of ours. The output can be closed by itself, so that whoever reads it sees the end.
struct Stdio {
    input: tokio::fs::File,
    output: Option<tokio::fs::File>,
    /// A person at a terminal is not waited for when the far side has ended.
    is_terminal: bool,
}

impl Stdio {
    /// The process's own standard output leads nowhere afterwards.
    fn take() -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        let file = |fd| tokio::fs::File::from_std(File::from(fd));
        Ok(Self { input: file(input), output: Some(file(output)), is_terminal: io::stdin().is_terminal() })
    }

    fn output(&mut self) -> io::Result<Pin<&mut tokio::fs::File>> {
        self.output.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl AsyncRead for Stdio {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_terminal && self.output.is_none() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.input).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.output()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        self.output()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        if let Some(output) = &mut self.output {
            ready!(Pin::new(output).poll_flush(cx))?;
        }
        self.output = None;
        Poll::Ready(Ok(()))
    }
}
