//! What comes through a tunnel. The first byte chooses: one of the messages, decoded; or a stream of messages and body frames, sent in
//! pieces over a real link. What was read is written and read again alike; a body without its End frame never ends well.

#![no_main]

use std::cell::OnceCell;
use std::fmt::Debug;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bincode::{BorrowDecode, Encode};
use bytes::Bytes;
use http_body::Body;
use libfuzzer_sys::fuzz_target;
use postern_fuzz::pair::Pair;
use postern_wire::body::FramedBody;
use postern_wire::codec::{self, CONTROL_LIMIT, HEAD_LIMIT, PREFIX};
use postern_wire::control::{AgentMessage, RelayMessage};
use postern_wire::head::{Fields, RequestHead, ResponseHead};
use postern_wire::join::{Invite, JoinAnswer, Question};
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static LINK: OnceCell<(Runtime, Pair)> = const { OnceCell::new() };
}

/// The corpus has bodies that end well and bodies that do not.
fn check() {
    assert_eq!(whole(&include_bytes!("../../corpus/frames/body")[1..]), Some(4));
    assert_eq!(whole(&include_bytes!("../../corpus/frames/body-cut")[1..]), None);
}

fuzz_target!(init: check(), |data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 10 {
        0 => owned::<AgentMessage>(data),
        1 => owned::<RelayMessage>(data),
        2 => question(data),
        3 => owned::<JoinAnswer>(data),
        4 => request(data),
        5 => response(data),
        6 => codec::decode::<Fields<'_>>(data).ok().iter().for_each(fields),
        7 => {
            let Ok(text) = std::str::from_utf8(data) else { return };
            let Ok(invite) = text.parse::<Invite>() else { return };
            assert_eq!(invite.to_string().parse::<Invite>().as_ref(), Ok(&invite));
        }
        kind => LINK.with(|link| {
            let (runtime, pair) = link.get_or_init(|| {
                let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                let pair = runtime.block_on(Pair::new());
                (runtime, pair)
            });
            let whole =
                async { tokio::time::timeout(Duration::from_secs(5), stream(pair, kind == 9, data)).await };
            runtime.block_on(whole).expect("a stream that neither ends nor fails");
        }),
    }
});

fn owned<T: for<'a> BorrowDecode<'a, ()> + Encode + PartialEq + Debug>(data: &[u8]) {
    let Ok(message) = codec::decode::<T>(data) else { return };
    // Numbers can be written in more bytes than they need: a message may get shorter, never longer.
    let bytes = codec::encoded(&message, HEAD_LIMIT).expect("what was read can be written");
    assert!(bytes.len() - PREFIX <= data.len());
    assert_eq!(codec::decode::<T>(&bytes[PREFIX..]).as_ref(), Ok(&message));
}

fn question(data: &[u8]) {
    let Ok(question) = Question::decode(data) else { return };
    // An empty secret, whose length was written long, is refused by enrolment; written short it would be a recovery.
    if matches!(&question, Question::Join(join) if join.secret.is_empty()) {
        return;
    }
    let bytes = codec::encoded(&question, HEAD_LIMIT).expect("what was read can be written");
    assert!(bytes.len() - PREFIX <= data.len());
    assert_eq!(Question::decode(&bytes[PREFIX..]).as_ref(), Ok(&question));
}

fn request(data: &[u8]) {
    let Ok(head) = codec::decode::<RequestHead<'_>>(data) else { return };
    let bytes = codec::encoded(&head, HEAD_LIMIT).expect("what was read can be written");
    let again = codec::decode::<RequestHead<'_>>(&bytes[PREFIX..]).expect("and read again");
    assert_eq!(format!("{again:?}"), format!("{head:?}"));
    if let RequestHead::Http { fields, .. } = &head {
        self::fields(fields);
    }
}

fn response(data: &[u8]) {
    let Ok(head) = codec::decode::<ResponseHead<'_>>(data) else { return };
    let bytes = codec::encoded(&head, HEAD_LIMIT).expect("what was read can be written");
    let again = codec::decode::<ResponseHead<'_>>(&bytes[PREFIX..]).expect("and read again");
    assert_eq!(format!("{again:?}"), format!("{head:?}"));
    if let ResponseHead::Http { fields, .. } = &head {
        self::fields(fields);
    }
}

/// Values share the memory of the message that they were read of, so a message of them alone is made.
fn fields(fields: &Fields<'_>) {
    let bytes = codec::encoded(fields, HEAD_LIMIT).expect("what was read can be written").slice(PREFIX..);
    let fields = codec::decode::<Fields<'_>>(&bytes).expect("and read again");
    let Ok(map) = fields.into_map(&bytes) else { return };
    for (name, value) in &map {
        assert!(!name.as_str().bytes().any(|byte| byte.is_ascii_uppercase() || byte <= b' '), "{name}");
        assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{name}");
    }
}

/// Sends the input in pieces, and reads messages or a body of it as the other end does.
async fn stream(pair: &Pair, is_body: bool, data: &[u8]) {
    let (mut send, mut recv, _other_direction) = pair.stream().await;
    // Pieces as long as the input's own first bytes say.
    let cut = data.first().map_or(1, |byte| usize::from(*byte) + 1);
    let sending = async {
        for piece in data.chunks(cut) {
            // Whoever reads may have given up by now.
            if send.send(&mut [Bytes::copy_from_slice(piece)]).await.is_err() {
                return;
            }
        }
        send.finish();
    };
    let reading = async {
        if !is_body {
            while let Ok(Some(message)) = recv.message(CONTROL_LIMIT).await {
                assert!(message.len() <= CONTROL_LIMIT);
            }
            return;
        }
        let mut body = FramedBody::new(recv);
        let mut length = 0;
        loop {
            match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                Some(Ok(frame)) => length += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) => return,
                None => break,
            }
        }
        assert_eq!(whole(data), Some(length), "a body without its End frame ended well");
    };
    tokio::join!(sending, reading);
}

/// Bytes of data before the End frame; nothing where there is none.
fn whole(mut bytes: &[u8]) -> Option<usize> {
    let mut length = 0;
    loop {
        let (&kind, rest) = bytes.split_first()?;
        let digits = 1 << (rest.first()? >> 6);
        let (number, rest) = rest.split_at_checked(digits)?;
        let number = number.iter().fold(0u64, |value, digit| value << 8 | u64::from(*digit));
        let payload = usize::try_from(number & (u64::MAX >> (66 - 8 * digits))).ok()?;
        let (_, rest) = rest.split_at_checked(payload)?;
        match kind {
            0 => length += payload,
            1 => {}
            2 if payload == 0 => return Some(length),
            _ => return None,
        }
        bytes = rest;
    }
}
