//! Takes what a mode found; gives its table, notes and last lines for people, the same as JSON, and the verdict.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::figures::Samples;
use crate::ratio::Ratio;

/// What a mode has found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) mode: &'static str,
    /// What was measured and how: a line or two.
    pub(crate) about: String,
    /// Figures to show, with their decimals; a table for each list.
    pub(crate) tables: Vec<Vec<(&'static str, usize)>>,
    pub(crate) samples: Samples,
    /// What else is to be said, such as peers that could not be had.
    pub(crate) notes: Vec<String>,
    pub(crate) ratios: Vec<Ratio>,
    /// What went wrong; the figures are then worth nothing.
    pub(crate) failures: Vec<String>,
}

impl Report {
    pub(crate) fn text(&self) -> Result<String> {
        let mut text = format!("== {}: {}\n\n", self.mode, self.about);
        for columns in &self.tables {
            text += &self.samples.table("median (min–max)", columns);
            text.push('\n');
        }
        for note in &self.notes {
            writeln!(text, "{note}")?;
        }
        for ratio in &self.ratios {
            writeln!(text, "{ratio}")?;
        }
        if !self.failures.is_empty() {
            writeln!(text, "\nFAILED, so these figures are worth nothing:\n{}", self.failures.join("\n"))?;
        }
        Ok(text)
    }

    pub(crate) fn json(&self) -> Value {
        let ratios: Vec<Value> = self.ratios.iter().map(Ratio::json).collect();
        json!({
            "mode": self.mode,
            "about": self.about,
            "targets": self.samples.json(),
            "notes": self.notes,
            "ratios": ratios,
            "failures": self.failures,
        })
    }

    /// Why this is no pass; `strict` holds what could not be measured against us too.
    pub(crate) fn complaints(&self, strict: bool) -> Vec<String> {
        let missed = self.ratios.iter().filter(|ratio| ratio.holds() == Some(false));
        let unproved = self.ratios.iter().filter(|ratio| strict && ratio.is_unproved());
        let ratios = missed.chain(unproved).map(|ratio| format!("missed: {ratio}"));
        let failures = self.failures.iter().map(|failure| format!("{}: {failure}", self.mode));
        failures.chain(ratios).collect()
    }
}

/// Programs that wanted a core on average in the last minute: on a machine with other work the figures are unsteady.
pub(crate) fn load_average() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().context("/proc/loadavg is empty")?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_counts_only_where_all_is_asked_for() {
        let report = Report {
            mode: "http",
            about: "about".to_owned(),
            tables: vec![vec![("/s", 0)]],
            samples: Samples::default(),
            notes: vec!["no Envoy".to_owned()],
            ratios: vec![
                Ratio::at_least("a", None, 1.0, None),
                Ratio::at_least("b", Some(0.5), 1.0, None),
                Ratio::at_least("c", Some(1.5), 1.0, None),
            ],
            failures: Vec::new(),
        };
        assert_eq!(report.complaints(false), ["missed: RATIO b 0.500 must >=1 stretch -"]);
        assert_eq!(report.complaints(true).len(), 2);
        assert!(report.text().unwrap().ends_with("RATIO c 1.500 must >=1 stretch -\n"));
    }
}
