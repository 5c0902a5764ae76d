//! An agent's own ceiling (`only` in agent.toml): takes targets as rules write them, gives what may pass whatever a relay allowed;
//! refuses patterns that rules would refuse.

use postern_base::config::Problem;

use super::target::Pattern;
use crate::path::CanonicalPath;

/// What may pass; everything where nothing was written.
#[derive(Debug)]
pub struct Ceiling(Vec<Pattern>);

impl Ceiling {
    /// # Errors
    /// The first entry that is no target, at its index.
    pub fn new(only: &[String]) -> Result<Self, Problem> {
        let pattern = |(index, text): (usize, &String)| {
            match Pattern::allowing(text) {
                Ok(pattern) if pattern.is_connect() => {
                    Err("CONNECT is for services of kind tcp, which have no paths to choose from".into())
                }
                pattern => pattern,
            }
            .map_err(|message: String| Problem::new(&index.to_string(), message))
        };
        Ok(Self(only.iter().enumerate().map(pattern).collect::<Result<_, _>>()?))
    }

    pub fn permits(&self, method: &str, path: &CanonicalPath<'_>) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| pattern.allows(method, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::PathMode;

    #[test]
    fn only_what_is_listed_passes() {
        let ceiling = Ceiling::new(&["GET,POST /v1/**".to_owned()]).unwrap();
        let permits =
            |method, path| ceiling.permits(method, &CanonicalPath::parse(path, PathMode::Loose).unwrap());
        assert!(permits("GET", "/v1/x") && permits("HEAD", "/v1") && permits("POST", "/v1/x/y"));
        assert!(!permits("DELETE", "/v1/x") && !permits("GET", "/v2") && !permits("GET", "/V1/x"));
        let all = Ceiling::new(&[]).unwrap();
        assert!(all.permits("DELETE", &CanonicalPath::parse("/any", PathMode::Strict).unwrap()));
        assert_eq!(Ceiling::new(&["GET /a".to_owned(), "get /b".to_owned()]).unwrap_err().at, ["1"]);
        assert_eq!(Ceiling::new(&["GET /a".to_owned(), "CONNECT".to_owned()]).unwrap_err().at, ["1"]);
    }
}
