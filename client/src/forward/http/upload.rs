//! A request's body on its way to the relay; what goes with a bound token keeps its beginning until it is known whether the relay wants the
//! request once more, with a nonce. Refuses to give a body twice when more than that has passed.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use postern_base::sync::lock;

/// More than is sent before a refusal comes: the relay opens a window of 64 KiB and takes nothing of a request that it refuses, and the last
/// piece of a local program that went beyond that has some 400 KiB at most.
const KEPT: usize = 1024 * 1024;

/// Why a body does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error(transparent)]
    Local(#[from] hyper::Error),
    #[error("the request was made anew")]
    Superseded,
}

/// A body, or nothing.
pub(crate) enum Upload {
    Empty,
    Once(Incoming),
    Kept(Turn),
}

/// One turn at a body that may have to be sent again; only the last turn goes on.
pub(crate) struct Turn {
    shared: Arc<Mutex<Shared>>,
    number: u32,
    /// The next of what is kept.
    next: usize,
}

struct Shared {
    body: Incoming,
    /// All that has been read of it; `None`: it was too much.
    kept: Option<Vec<Bytes>>,
    size: usize,
    turns: u32,
}

/// The right to another turn; once it is given up, nothing more is kept.
pub(crate) struct Again(Option<Arc<Mutex<Shared>>>);

impl Drop for Again {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            lock(shared).kept = None;
        }
    }
}

impl Upload {
    pub(crate) fn once(body: Incoming) -> Self {
        if body.is_end_stream() { Self::Empty } else { Self::Once(body) }
    }

    pub(crate) fn kept(body: Incoming) -> (Self, Again) {
        if body.is_end_stream() {
            return (Self::Empty, Again(None));
        }
        let shared = Arc::new(Mutex::new(Shared { body, kept: Some(Vec::new()), size: 0, turns: 0 }));
        (Self::Kept(Turn { shared: shared.clone(), number: 0, next: 0 }), Again(Some(shared)))
    }
}

impl Again {
    /// The body from its beginning; the turn before ends in the middle.
    pub(crate) fn take(mut self) -> Option<Upload> {
        let Some(shared) = self.0.take() else { return Some(Upload::Empty) };
        let number = {
            let mut body = lock(&shared);
            body.kept.as_ref()?;
            body.turns += 1;
            body.turns
        };
        Some(Upload::Kept(Turn { shared, number, next: 0 }))
    }
}

impl Turn {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let mut shared = lock(&self.shared);
        if shared.turns != self.number {
            return Poll::Ready(Some(Err(UploadError::Superseded)));
        }
        if let Some(kept) = shared.kept.as_ref().and_then(|kept| kept.get(self.next)) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        let frame = ready!(Pin::new(&mut shared.body).poll_frame(cx)).transpose()?;
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
            shared.size += data.len();
            if shared.size > KEPT {
                shared.kept = None;
            } else if let Some(kept) = &mut shared.kept {
                kept.push(data.clone());
                self.next += 1;
            }
        }
        Poll::Ready(frame.map(Ok))
    }

    /// What of the kept beginning is still to come.
    fn ahead(&self, shared: &Shared) -> u64 {
        let kept = shared.kept.as_ref().map_or(&[][..], |kept| &kept[self.next.min(kept.len())..]);
        kept.iter().map(|data| data.len() as u64).sum()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Once(body) => Pin::new(body).poll_frame(cx).map_err(UploadError::Local),
            Self::Kept(turn) => turn.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body) => body.is_end_stream(),
            Self::Kept(turn) => {
                let shared = lock(&turn.shared);
                turn.ahead(&shared) == 0 && shared.body.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Once(body) => body.size_hint(),
            Self::Kept(turn) => {
                let shared = lock(&turn.shared);
                let (ahead, rest) = (turn.ahead(&shared), shared.body.size_hint());
                let mut hint = SizeHint::new();
                hint.set_lower(ahead + rest.lower());
                if let Some(upper) = rest.upper() {
                    hint.set_upper(ahead + upper);
                }
                hint
            }
        }
    }
}
