//! The lines that an audit log writes of itself.

use serde::Serialize;

use super::Time;

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(super) enum Own<'a> {
    /// A file begins here. `after` is where the chain stood before.
    File {
        time: Time,
        /// The file before it.
        #[serde(skip_serializing_if = "Option::is_none")]
        previous: Option<&'a str>,
        /// Head and mac of the line before.
        #[serde(skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// Lines are missing in front of this one.
    Gap {
        time: Time,
        /// `dropped`, `crash` or `unproved`.
        reason: &'static str,
        /// How many lines there would have been.
        #[serde(skip_serializing_if = "Option::is_none")]
        lost: Option<u64>,
        /// The sequence numbers that are missing or cannot be proved.
        #[serde(skip_serializing_if = "Option::is_none")]
        first: Option<u64>,
        /// The last of them.
        #[serde(skip_serializing_if = "Option::is_none")]
        last: Option<u64>,
        /// Bytes of half a line that were taken away.
        #[serde(skip_serializing_if = "Option::is_none")]
        torn_bytes: Option<u64>,
        /// Head and mac of the line before.
        #[serde(skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// A file that was older than `rotate.keep_for` is gone.
    FileRemoved {
        time: Time,
        /// Its name.
        file: &'a str,
    },
}

impl Own<'_> {
    /// As JSON, with the line's end.
    pub(super) fn encoded(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        // Names, numbers and times always are JSON.
        let _ = serde_json::to_writer(&mut bytes, self);
        bytes.push(b'\n');
        bytes
    }
}
