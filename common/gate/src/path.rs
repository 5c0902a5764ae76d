//! Takes the raw path of a request; gives its one canonical spelling, on which routing, policy and forwarding agree (http.md,
//! "Finding a service"); refuses whatever two readers could understand in two ways.
//!
//! Canonical: escapes in upper case, unreserved characters (RFC 3986, 2.3) never escaped, no dot segments.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

/// How much ambiguity a service puts up with (`paths` in relay.toml).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PathMode {
    #[default]
    Strict,
    /// Lets `//`, `;`, `%2F` and `%25hh` through; only wildcards of allowing rules match them.
    Loose,
}

/// Why a path is refused; `at` counts bytes of the raw path from 0. The text is fit for a caller and repeats nothing of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path must start with \"/\"")]
    NotAbsolute,
    #[error("byte {at} of the path (0x{byte:02X}) must be percent-encoded")]
    Raw { at: usize, byte: u8 },
    #[error("\"%\" at byte {at} of the path is not followed by two hexadecimal digits")]
    BadEscape { at: usize },
    #[error("there is a control character at byte {at} of the path: leave it out")]
    Control { at: usize },
    #[error("there is a backslash at byte {at} of the path: leave it out, escaped too")]
    Backslash { at: usize },
    #[error("there is an escaped slash (%2F) at byte {at} of the path: this service does not take one")]
    EscapedSlash { at: usize },
    #[error("there is a \";\" at byte {at} of the path: this service does not take path parameters")]
    Semicolon { at: usize },
    #[error(
        "there is a twice escaped character (%25 and two hexadecimal digits) ending at byte {at} of the path: escape once"
    )]
    EscapedTwice { at: usize },
    #[error("there is an empty segment (\"//\") at byte {at} of the path: write one \"/\"")]
    EmptySegment { at: usize },
    #[error("the escape at byte {at} of the path is not part of a UTF-8 character")]
    NotUtf8 { at: usize },
    #[error("segment {segment} of the path hides a dot segment: write the path it means")]
    HiddenDots { segment: usize },
}

/// A path in its canonical spelling; it always starts with `/`. Only [`CanonicalPath::parse`] makes one.
#[derive(Clone, PartialEq, Eq)]
pub struct CanonicalPath<'a> {
    text: Cow<'a, str>,
    mode: PathMode,
}

impl<'a> CanonicalPath<'a> {
    /// Canonicalises `raw`, a path without its query. Borrows it when it is canonical already.
    ///
    /// # Errors
    /// It is not a path (`*`, a relative one), malformed, or ambiguous.
    pub fn parse(raw: &'a str, mode: PathMode) -> Result<Self, PathError> {
        if !raw.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        if is_plain(raw) {
            return Ok(Self { text: Cow::Borrowed(raw), mode });
        }
        let text = canonical(raw, mode)?;
        let text = if text == raw { Cow::Borrowed(raw) } else { Cow::Owned(text) };
        Ok(Self { text, mode })
    }

    /// `/`: what stands for the path where there is none.
    pub const fn root() -> CanonicalPath<'static> {
        CanonicalPath { text: Cow::Borrowed("/"), mode: PathMode::Strict }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What is left behind `prefix`, which is whole segments: `/billing` leaves `/` of `/billing` and `/x` of `/billing/x`, and is no
    /// prefix of `/billingx`. The rest is checked again.
    pub fn strip_prefix(&self, prefix: &str) -> Option<CanonicalPath<'_>> {
        let rest = self.text.strip_prefix(prefix.trim_end_matches('/'))?;
        let rest = if rest.is_empty() { "/" } else { rest };
        let path = CanonicalPath::parse(rest, self.mode).ok()?;
        (path.as_str() == rest).then_some(path)
    }

    /// The same path, independent of what it was parsed from.
    pub fn into_owned(self) -> CanonicalPath<'static> {
        CanonicalPath { text: Cow::Owned(self.text.into_owned()), mode: self.mode }
    }

    /// The other ways in which an upstream may read this path, as lists of folded segments: escapes decoded (however often), parameters
    /// kept or cut, before or after that. Empty when there is but one reading. Denials look at all of them.
    pub(crate) fn readings(&self) -> Vec<Vec<String>> {
        if is_plain(&self.text) {
            return Vec::new();
        }
        let cut = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
        let split = |text: &str| -> Vec<String> { text.split(['/', '\\']).map(str::to_owned).collect() };
        let written: Vec<&str> = self.text.split('/').collect();
        let one_by_one: Vec<String> = written.iter().map(|segment| fold(segment)).collect();
        let decoded: Vec<String> = one_by_one.iter().flat_map(|segment| split(segment)).collect();
        let decoded_cut = decoded.iter().map(|segment| cut(segment)).collect();
        let cut_decoded = written.iter().flat_map(|segment| split(&fold(&cut(segment)))).collect();
        let mut readings = vec![one_by_one, decoded, decoded_cut, cut_decoded];
        for reading in &mut readings {
            reading.retain(|segment| !segment.is_empty());
        }
        readings.dedup();
        readings
    }
}

/// A segment as denials compare it: decoded, in lower case.
pub(crate) fn fold(segment: &str) -> String {
    decode(segment).to_lowercase()
}

impl fmt::Display for CanonicalPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for CanonicalPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Canonical at a glance, in both modes: nothing escaped, empty, ambiguous, or starting with a dot.
fn is_plain(path: &str) -> bool {
    let mut previous = 0;
    path.bytes().all(|byte| {
        let plain = byte.is_ascii_graphic()
            && !matches!(byte, b'%' | b'\\' | b';' | b'?' | b'#')
            && !(previous == b'/' && matches!(byte, b'/' | b'.'));
        previous = byte;
        plain
    })
}

fn canonical(raw: &str, mode: PathMode) -> Result<String, PathError> {
    let strict = mode == PathMode::Strict;
    let bytes = raw.as_bytes();
    let mut out = String::with_capacity(raw.len());
    let mut decoded = Vec::with_capacity(raw.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escape = byte == b'%';
        let value = if escape { hex(bytes, at + 1).ok_or(PathError::BadEscape { at })? } else { byte };
        match value {
            0..b' ' | 0x7f => return Err(PathError::Control { at }),
            b'\\' => return Err(PathError::Backslash { at }),
            b'/' if strict && escape => return Err(PathError::EscapedSlash { at }),
            b'/' if strict && out.ends_with('/') => return Err(PathError::EmptySegment { at }),
            b';' if strict && !escape => return Err(PathError::Semicolon { at }),
            b' ' | b'?' | b'#' | 0x80.. if !escape => return Err(PathError::Raw { at, byte }),
            _ => {}
        }
        decoded.push(value);
        if !escape || value.is_ascii_alphanumeric() || b"-._~".contains(&value) {
            out.push(char::from(value));
        } else {
            out.push('%');
            out.extend(
                [value >> 4, value & 15].map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit)])),
            );
        }
        // Looked for in what comes out: `%25%34%31` is `%2541` once its digits are decoded.
        let tail = out.len().saturating_sub(5);
        if strict && out.as_bytes()[tail..].starts_with(b"%25") && hex(out.as_bytes(), tail + 3).is_some() {
            return Err(PathError::EscapedTwice { at });
        }
        at += if escape { 3 } else { 1 };
    }
    let text = std::str::from_utf8(&decoded)
        .map_err(|e| PathError::NotUtf8 { at: raw_offset(bytes, e.valid_up_to()) })?;
    if let Some((index, _)) = text.char_indices().find(|(_, c)| c.is_control()) {
        return Err(PathError::Control { at: raw_offset(bytes, index) });
    }
    resolve_dots(&out)
}

/// Removes dot segments (RFC 3986, 5.2.4); refuses those that only an upstream which decodes more or cuts parameters would see.
fn resolve_dots(path: &str) -> Result<String, PathError> {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).enumerate().peekable();
    while let Some((index, segment)) = segments.next() {
        if segment == ".." {
            kept.pop();
        }
        if matches!(segment, "." | "..") {
            if segments.peek().is_none() {
                kept.push("");
            }
            continue;
        }
        let hides_dots = |decoded: &str| {
            decoded.split(['/', '\\']).any(|part| matches!(part.split(';').next(), Some("." | "..")))
        };
        if segment.contains(['%', ';']) && hides_dots(&decode(segment)) {
            return Err(PathError::HiddenDots { segment: index + 1 });
        }
        kept.push(segment);
    }
    Ok(format!("/{}", kept.join("/")))
}

/// Decodes escapes until none is left, in one pass: what a chain of careless decoders would make of it.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        out.push(byte);
        while let Some(start) = out.len().checked_sub(3)
            && out[start] == b'%'
            && let Some(value) = hex(&out, start + 1)
        {
            out.truncate(start);
            out.push(value);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The byte that two hexadecimal digits at `at` stand for.
fn hex(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |index: usize| char::from(*bytes.get(index)?).to_digit(16);
    u8::try_from(digit(at)? * 16 + digit(at + 1)?).ok()
}

/// Where in `raw`, whose escapes are well-formed, the byte stands that is number `decoded` after decoding.
fn raw_offset(raw: &[u8], decoded: usize) -> usize {
    (0..decoded).fold(0, |at, _| at + if raw.get(at) == Some(&b'%') { 3 } else { 1 })
}

#[cfg(test)]
mod tests;
