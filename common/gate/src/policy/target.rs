//! Takes `METHOD[,METHOD] PATH`, or `CONNECT` alone, as rules write them; gives patterns that match canonical targets; refuses patterns
//! that could not mean what they look like.

use crate::path::{self, CanonicalPath, PathMode};

/// The method of TCP services, which have no path; no pattern that allows takes it for one of `*`.
pub const CONNECT: &str = "CONNECT";

/// One compiled entry of `to`.
#[derive(Debug)]
pub(super) struct Pattern {
    /// As the file has it.
    pub(super) text: Box<str>,
    /// `None` = all methods; of those that allow, all but CONNECT.
    methods: Option<Vec<Box<str>>>,
    segments: Vec<Segment>,
    /// Ends with `**`.
    rest: bool,
}

#[derive(Debug)]
pub(super) enum Segment {
    Literal(Box<str>),
    /// `*`: exactly one segment, not an empty one.
    One,
}

impl Pattern {
    /// A pattern that allows: matched exactly.
    pub(super) fn allowing(text: &str) -> Result<Self, String> {
        if text == CONNECT {
            let methods = Some(vec![CONNECT.into()]);
            return Ok(Self { text: text.into(), methods, segments: Vec::new(), rest: true });
        }
        let (methods, path) = text
            .split_once(' ')
            .map(|(methods, path)| (methods, path.trim_start()))
            .filter(|(methods, path)| !methods.is_empty() && !path.is_empty())
            .ok_or_else(|| {
                format!("{text:?} is not METHOD[,METHOD] PATH: write \"GET /v1/**\" or \"* /v1/**\"")
            })?;
        let methods = (methods != "*").then(|| parse_methods(methods)).transpose()?;
        let canonical = CanonicalPath::parse(path, PathMode::Strict).map_err(|e| format!("{path:?}: {e}"))?;
        if path.split('/').any(|segment| matches!(&*path::fold(segment), "." | "..")) {
            return Err(format!("{path:?} has dot segments: write {:?}", canonical.as_str()));
        }
        let mut segments: Vec<&str> = canonical.as_str().split('/').skip(1).collect();
        let rest = segments.last() == Some(&"**");
        if rest {
            segments.pop();
        }
        if let Some(wild) = segments.iter().find(|segment| segment.contains('*') && **segment != "*") {
            return Err(match *wild {
                "**" => format!("{path:?} has ** before its end: it may only be the last segment"),
                _ => format!("{path:?}: * stands for a whole segment; for the character itself write %2A"),
            });
        }
        let segment = |text: &str| if text == "*" { Segment::One } else { Segment::Literal(text.into()) };
        let segments = segments.into_iter().map(segment).collect();
        Ok(Self { text: text.into(), methods, segments, rest })
    }

    /// A pattern that denies: letters of either case, escaped or not, with or without a slash at the end.
    pub(super) fn denying(text: &str) -> Result<Self, String> {
        let mut pattern = Self::allowing(text)?;
        for segment in &mut pattern.segments {
            if let Segment::Literal(text) = segment {
                *text = path::fold(text).into();
            }
        }
        pattern.segments.retain(|segment| !matches!(segment, Segment::Literal(text) if text.is_empty()));
        Ok(pattern)
    }

    /// Whether it is for TCP services.
    pub(super) fn is_connect(&self) -> bool {
        &*self.text == CONNECT
    }

    pub(super) fn allows(&self, method: &str, path: &CanonicalPath<'_>) -> bool {
        self.knows(method) && self.covers(path)
    }

    /// The method matches, whatever the path.
    pub(super) fn knows(&self, method: &str) -> bool {
        match &self.methods {
            None => method != CONNECT,
            Some(list) => list.iter().any(|known| **known == *method),
        }
    }

    /// The path matches, whatever the method.
    pub(super) fn covers(&self, path: &CanonicalPath<'_>) -> bool {
        self.matches(path.as_str().split('/').skip(1), |literal, segment| literal == segment)
    }

    /// The methods by name; none when the pattern takes all.
    pub(super) fn methods(&self) -> &[Box<str>] {
        self.methods.as_deref().unwrap_or_default()
    }

    /// Adds this pattern's methods to those of others; `None` = all.
    pub(super) fn add_methods(&self, to: &mut Option<Vec<Box<str>>>) {
        match (&self.methods, to) {
            (None, to) => *to = None,
            (Some(_), None) => {}
            (Some(own), Some(list)) => {
                for method in own {
                    if !list.contains(method) {
                        list.push(method.clone());
                    }
                }
            }
        }
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// A path that it covers.
    pub(super) fn example(&self) -> String {
        let segment = |segment: &Segment| match segment {
            Segment::Literal(text) => format!("/{text}"),
            Segment::One => "/x".to_owned(),
        };
        let rest = self.rest.then(|| "/x".to_owned());
        let path: String = self.segments.iter().map(segment).chain(rest).collect();
        if path.is_empty() { "/".to_owned() } else { path }
    }

    /// Whether it ends with `**`.
    pub(super) fn has_rest(&self) -> bool {
        self.rest
    }

    /// `readings` are those of `path`.
    pub(super) fn denies(&self, method: &str, path: &CanonicalPath<'_>, readings: &[Vec<String>]) -> bool {
        let known = |list: &Vec<Box<str>>| list.iter().any(|known| known.eq_ignore_ascii_case(method));
        if !self.methods.as_ref().is_none_or(known) {
            return false;
        }
        if method == CONNECT {
            // There is no path: only what covers every path covers it.
            return self.rest && self.segments.is_empty();
        }
        if readings.is_empty() {
            let segments = path.as_str().split('/').filter(|segment| !segment.is_empty());
            return self.matches(segments, str::eq_ignore_ascii_case);
        }
        readings.iter().any(|reading| self.matches(reading.iter().map(String::as_str), |a, b| a == b))
    }

    fn matches<'p>(
        &self,
        mut path: impl Iterator<Item = &'p str>,
        same: impl Fn(&str, &str) -> bool,
    ) -> bool {
        let start = self.segments.iter().all(|segment| match (segment, path.next()) {
            (Segment::Literal(literal), Some(found)) => same(literal, found),
            (Segment::One, Some(found)) => !found.is_empty(),
            (Segment::Literal(_) | Segment::One, None) => false,
        });
        start && (self.rest || path.next().is_none())
    }
}

const NO_PATH: &str = "CONNECT stands alone, without a path or other methods: it is for services of kind tcp";

fn parse_methods(text: &str) -> Result<Vec<Box<str>>, String> {
    let mut methods: Vec<Box<str>> = Vec::new();
    for method in text.split(',') {
        methods.push(check_method(method)?.into());
        // RFC 9110, 9.3.2: who may GET may as well ask for the head alone.
        if method == "GET" && !text.split(',').any(|other| other == "HEAD") {
            methods.push("HEAD".into());
        }
    }
    Ok(methods)
}

/// A method (RFC 9110, 9.1: a token) in capitals, as all registered ones are.
pub(super) fn check_method(method: &str) -> Result<&str, String> {
    let capital = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b"!#$%&'+-.^_`|~".contains(&b);
    if method == CONNECT {
        Err(NO_PATH.to_owned())
    } else if method.is_empty() || !method.bytes().all(capital) {
        Err(format!("{method:?} is not a method: write them in capitals, such as \"GET\" or \"PUT,DELETE\""))
    } else {
        Ok(method)
    }
}

#[cfg(test)]
mod tests;
