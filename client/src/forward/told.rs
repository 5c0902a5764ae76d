//! Takes what went wrong with single connections; tells each reason once, not once per connection, until it is over.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use postern_base::sync::lock;

use crate::failure::Failure;
use crate::output::Output;

/// So many reasons are remembered as told; a relay, or a program, that invents more is not repeated.
const REASONS: usize = 16;

/// The reasons that were told.
pub(crate) struct Told {
    out: Output,
    reasons: Mutex<BTreeSet<String>>,
}

impl Told {
    pub(crate) fn new(out: Output) -> Self {
        Self { out, reasons: Mutex::default() }
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        // Ids differ from refusal to refusal.
        if self.is_new(failure.message.split("   [").next().unwrap_or_default()) {
            self.out.failure(failure);
        }
    }

    pub(crate) fn warn(&self, line: &str) {
        if self.is_new(line) {
            self.out.warn(line);
        }
    }

    /// It works: should it fail again, that is news.
    pub(crate) fn clear(&self) {
        self.reasons().clear();
    }

    fn is_new(&self, reason: &str) -> bool {
        let mut reasons = self.reasons();
        reasons.len() < REASONS && reasons.insert(reason.to_owned())
    }

    pub(super) fn reasons(&self) -> MutexGuard<'_, BTreeSet<String>> {
        lock(&self.reasons)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    #[test]
    fn a_reason_is_told_once_until_it_is_over_and_not_without_end() {
        let told = Told::new(Output::new(false, true));
        told.failure(&Failure::new(Exit::Denied, "no   [decision 1]"));
        told.failure(&Failure::new(Exit::Denied, "no   [decision 2]"));
        assert_eq!(told.reasons().iter().collect::<Vec<_>>(), ["no"]);
        for number in 0..100 {
            told.warn(&number.to_string());
        }
        assert_eq!(told.reasons().len(), REASONS);
        told.clear();
        assert!(told.is_new("no"));
    }
}
