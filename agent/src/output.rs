//! The only room of the agent's commands that prints: data on stdout, everything said to people on stderr.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use serde::Serialize;

/// How the commands were asked to speak.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

impl Output {
    /// Something for people; `-q` leaves it out.
    pub(crate) fn note(self, text: impl Display) {
        if !self.quiet {
            error(text);
        }
    }
}

/// One line of data.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    raw(format!("{text}\n").as_bytes())
}

/// Data as it is.
pub(crate) fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // The reader has seen enough (`… | head`).
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// One JSON document.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string_pretty(value).map_err(io::Error::from)?)
}

/// Something that people must see.
pub(crate) fn error(text: impl Display) {
    // With stderr closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
