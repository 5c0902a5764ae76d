//! Takes a query or a form body; gives its parameters by name; refuses one that comes twice (RFC 6749 3.1), except `resource` (RFC 8707).

use url::form_urlencoded;

/// An OAuth error: the code is for programs (RFC 6749 5.2, RFC 8628 3.5), the reason for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) why: &'static str,
}

impl Refusal {
    pub(super) const fn new(code: &'static str, why: &'static str) -> Self {
        Self { code, why }
    }
}

/// Parameters with a value; one without counts as left out (RFC 6749 3.1).
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn parse(encoded: &[u8]) -> Result<Self, Refusal> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(encoded).into_owned() {
            if name != "resource" && pairs.iter().any(|(known, _)| *known == name) {
                return Err(Refusal::new("invalid_request", "a parameter comes twice"));
            }
            if !value.is_empty() {
                pairs.push((name, value));
            }
        }
        Ok(Self(pairs))
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn need(&self, name: &str) -> Result<&str, Refusal> {
        self.get(name).ok_or(Refusal::new("invalid_request", "a required parameter is missing"))
    }
}
