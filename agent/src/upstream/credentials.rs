//! The secrets that are added on the way to an upstream (`inject`): loaded once, put in place of whatever came under their names in any
//! spelling, and shown to nobody.

use http::{HeaderMap, HeaderName, HeaderValue};
use postern_wire::fields::folded;

use super::UpstreamError;
use crate::settings::Service;

/// One service's fields; the values are marked sensitive, so that nothing shows them.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    fields: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    name: HeaderName,
    /// With `_` read as `-`, as some servers do.
    folded: String,
    value: HeaderValue,
}

impl Credentials {
    /// # Errors
    /// A secret that is not where it should be, or that no header field can carry.
    pub(crate) fn load(service: &Service) -> Result<Self, UpstreamError> {
        let field = |(name, secret): &(HeaderName, postern_base::secret::SecretRef)| {
            let refuse = |reason: String| UpstreamError {
                service: service.name.clone(),
                key: format!("inject.{name}"),
                reason,
            };
            let secret = secret.load().map_err(|e| refuse(e.to_string()))?;
            let mut value = HeaderValue::from_str(secret.expose())
                .map_err(|_| refuse("the secret has characters that no header field can carry".to_owned()))?;
            value.set_sensitive(true);
            Ok(Field { name: name.clone(), folded: folded(name).into_owned(), value })
        };
        Ok(Self { fields: service.inject.iter().map(field).collect::<Result<_, _>>()? })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Takes out what came under our names.
    pub(crate) fn strip(&self, headers: &mut HeaderMap) {
        if self.is_empty() {
            return;
        }
        let is_ours = |name: &&HeaderName| {
            let name = folded(name);
            self.fields.iter().any(|field| field.folded == name)
        };
        let names: Vec<HeaderName> = headers.keys().filter(is_ours).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }

    /// Puts ours in place of what came under their names.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        self.strip(headers);
        for field in &self.fields {
            headers.insert(field.name.clone(), field.value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_replace_every_spelling_and_are_not_shown() {
        let mut value = HeaderValue::from_static("hunter2");
        value.set_sensitive(true);
        let name: HeaderName = "x-api-key".parse().unwrap();
        let field = Field { folded: folded(&name).into_owned(), name, value };
        let credentials = Credentials { fields: vec![field] };
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x_api-key", "a"), ("x-api-key", "b"), ("x-api-key", "c"), ("x-api-key2", "kept")]
        {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        credentials.apply(&mut headers);
        let all: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(all.len(), 2, "{all:?}");
        assert_eq!(headers["x-api-key"], "hunter2");
        assert!(!format!("{credentials:?}{headers:?}").contains("hunter2"));
    }
}
