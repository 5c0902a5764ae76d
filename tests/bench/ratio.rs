//! Takes a figure and what it must reach; gives its last line, `RATIO name value must M stretch S`, and whether the must was missed.

use std::fmt;

use serde_json::{Value, json};

/// What a figure is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

use Bound::{AtLeast, AtMost};

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            AtLeast(bound) => value >= bound,
            AtMost(bound) => value <= bound,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AtLeast(bound) => write!(f, ">={bound}"),
            AtMost(bound) => write!(f, "<={bound}"),
        }
    }
}

/// One figure of design/performance.md.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ratio {
    name: String,
    /// `None`: could not be measured.
    value: Option<f64>,
    must: Option<Bound>,
    stretch: Option<Bound>,
}

impl Ratio {
    pub(crate) fn at_least(name: &str, value: Option<f64>, must: f64, stretch: Option<f64>) -> Self {
        let (must, stretch) = (Some(AtLeast(must)), stretch.map(AtLeast));
        Self { name: name.to_owned(), value, must, stretch }
    }

    pub(crate) fn at_most(name: &str, value: Option<f64>, must: f64, stretch: Option<f64>) -> Self {
        let (must, stretch) = (Some(AtMost(must)), stretch.map(AtMost));
        Self { name: name.to_owned(), value, must, stretch }
    }

    /// A figure that is tried for and not demanded.
    pub(crate) fn wish(name: &str, value: Option<f64>, stretch: Bound) -> Self {
        Self { name: name.to_owned(), value, must: None, stretch: Some(stretch) }
    }

    /// `None` where nothing was measured, which is neither.
    pub(crate) fn holds(&self) -> Option<bool> {
        let (value, Some(must)) = (self.value?, self.must) else { return Some(true) };
        Some(must.holds(value))
    }

    /// Whether a must stands without a figure.
    pub(crate) fn is_unproved(&self) -> bool {
        self.must.is_some() && self.value.is_none()
    }

    pub(crate) fn json(&self) -> Value {
        let text = |bound: Option<Bound>| bound.map(|bound| bound.to_string());
        json!({ "name": self.name, "value": self.value, "must": text(self.must), "stretch": text(self.stretch) })
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value, must, stretch } = self;
        match value {
            Some(value) => write!(f, "RATIO {name} {value:.3}")?,
            None => write!(f, "RATIO {name} not-measured")?,
        }
        let bound = |bound: &Option<Bound>| bound.map_or_else(|| "-".to_owned(), |bound| bound.to_string());
        write!(f, " must {} stretch {}", bound(must), bound(stretch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_must_and_a_missing_figure_are_told_apart() {
        let good = Ratio::at_least("rps", Some(0.28), 0.28, Some(0.38));
        assert_eq!((good.holds(), good.is_unproved()), (Some(true), false));
        assert_eq!(good.to_string(), "RATIO rps 0.280 must >=0.28 stretch >=0.38");
        let bad = Ratio::at_most("cpu", Some(0.61), 0.6, None);
        assert_eq!(bad.holds(), Some(false));
        assert_eq!(bad.to_string(), "RATIO cpu 0.610 must <=0.6 stretch -");
        let none = Ratio::at_most("cpu", None, 0.6, None);
        assert_eq!((none.holds(), none.is_unproved()), (None, true));
        assert_eq!(none.to_string(), "RATIO cpu not-measured must <=0.6 stretch -");
        let wish = Ratio::wish("plain", Some(0.1), AtLeast(1.0));
        assert_eq!((wish.holds(), wish.is_unproved()), (Some(true), false));
    }

    #[test]
    fn what_is_no_number_reaches_nothing() {
        assert_eq!(Ratio::at_least("rps", Some(f64::NAN), 0.1, None).holds(), Some(false));
        assert_eq!(Ratio::at_most("cpu", Some(f64::NAN), 0.1, None).holds(), Some(false));
    }
}
