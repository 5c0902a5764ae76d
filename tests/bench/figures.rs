//! Takes what rounds measured, by target and figure; gives medians with their spread, ratios taken within each round, and one table.
//! A figure that was not measured is a dash, never a zero.

use serde_json::{Map, Value, json};

/// Samples of one figure, at least one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` where there are no samples.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted[sorted.len() / 2];
        let lower = sorted[(sorted.len() - 1) / 2];
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }

    /// Median, least and greatest, as one cell.
    pub(crate) fn cell(self, decimals: usize) -> String {
        let [median, min, max] = [self.median, self.min, self.max].map(|value| format!("{value:.decimals$}"));
        format!("{median} ({min}–{max})")
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

/// One figure of one target: a value for each round, in the order of the rounds.
#[derive(Debug)]
struct Series {
    target: String,
    figure: &'static str,
    values: Vec<f64>,
}

/// Everything that a mode measured.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    series: Vec<Series>,
}

impl Samples {
    pub(crate) fn add(&mut self, target: &str, figure: &'static str, value: f64) {
        match self.series.iter_mut().find(|s| s.target == target && s.figure == figure) {
            Some(series) => series.values.push(value),
            None => self.series.push(Series { target: target.to_owned(), figure, values: vec![value] }),
        }
    }

    /// The values of each round; empty where it was not measured.
    pub(crate) fn values(&self, target: &str, figure: &str) -> &[f64] {
        let found = self.series.iter().find(|s| s.target == target && s.figure == figure);
        found.map(|series| series.values.as_slice()).unwrap_or_default()
    }

    pub(crate) fn median(&self, target: &str, figure: &str) -> Option<f64> {
        Spread::of(self.values(target, figure).iter().copied()).map(|spread| spread.median)
    }

    /// One target's figure as a share of another's, round by round, and of that the median.
    pub(crate) fn ratio(&self, figure: &str, of: &str, to: &str) -> Option<f64> {
        let pairs = self.values(of, figure).iter().zip(self.values(to, figure));
        Spread::of(pairs.map(|(of, to)| of / to)).map(|spread| spread.median)
    }

    /// A row for each target that has any of the figures, a column for each of them with its decimals.
    pub(crate) fn table(&self, title: &str, columns: &[(&str, usize)]) -> String {
        let mut targets: Vec<&str> = Vec::new();
        for series in &self.series {
            let is_shown = columns.iter().any(|(figure, _)| *figure == series.figure);
            if is_shown && !targets.contains(&series.target.as_str()) {
                targets.push(&series.target);
            }
        }
        let row = |target: &&str| {
            let cell = |(figure, decimals): &(&str, usize)| {
                let spread = Spread::of(self.values(target, figure).iter().copied());
                spread.map_or_else(|| "-".to_owned(), |spread| spread.cell(*decimals))
            };
            std::iter::once((*target).to_owned()).chain(columns.iter().map(cell)).collect()
        };
        let head: Vec<&str> =
            std::iter::once(title).chain(columns.iter().map(|(figure, _)| *figure)).collect();
        table(&head, &targets.iter().map(row).collect::<Vec<_>>())
    }

    pub(crate) fn json(&self) -> Value {
        let mut targets = Map::new();
        for Series { target, figure, values } in &self.series {
            let figures = targets.entry(target.as_str()).or_insert_with(|| json!({}));
            let spread = Spread::of(values.iter().copied()).map(Spread::json);
            figures[*figure] = json!({ "rounds": values, "spread": spread });
        }
        Value::Object(targets)
    }
}

/// A table: the first column is text, the others are numbers, each as wide as its widest cell.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&head).chain(rows).collect();
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let cell = if column == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
            text.push_str(&cell);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_however_many_there_are() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([2.0]), Some(Spread { median: 2.0, min: 2.0, max: 2.0 }));
        assert_eq!(Spread::of([9.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 9.0, 2.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn ratios_are_taken_within_rounds_and_only_of_what_was_measured() {
        let mut samples = Samples::default();
        for (ours, theirs) in [(1.0, 2.0), (9.0, 3.0), (4.0, 4.0)] {
            samples.add("ours", "/s", ours);
            samples.add("theirs", "/s", theirs);
        }
        assert_eq!(samples.ratio("/s", "ours", "theirs"), Some(1.0));
        assert_eq!(samples.ratio("/s", "ours", "absent"), None);
        assert_eq!(samples.median("ours", "/s"), Some(4.0));
        assert_eq!(samples.json()["theirs"]["/s"]["spread"]["max"], 4.0);
    }

    #[test]
    fn columns_line_up_though_letters_take_two_bytes() {
        let mut samples = Samples::default();
        samples.add("µs", "rps", 1.0);
        samples.add("long name", "rps", 12.0);
        samples.add("long name", "MiB", 0.25);
        let text = samples.table("what", &[("rps", 0), ("MiB", 1)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "µs            1 (1–1)              -");
        assert_eq!(lines[2], "long name  12 (12–12)  0.2 (0.2–0.2)");
    }
}
