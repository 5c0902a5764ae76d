//! The load generators: `wrk` and `h2load` at full speed, and our own where neither can: raw bytes through a tunnel ([`exchange`],
//! [`bulk`]) and a fixed pace ([`paced`]). Each gives a [`Load`].

pub(crate) mod bulk;
pub(crate) mod dial;
pub(crate) mod exchange;
pub(crate) mod h2load;
pub(crate) mod paced;
pub(crate) mod wrk;

/// Keep-alive connections, or requests in flight, at full speed.
pub(crate) const CONNECTIONS: usize = 32;

/// What one run saw of its target.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Load {
    /// Answers that came whole.
    pub(crate) requests: u64,
    pub(crate) per_second: f64,
    /// `None` where the generator does not say.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// Connections, reads and writes that failed, and answers that came too late.
    pub(crate) broken: u64,
    /// Answers with another status than asked for.
    pub(crate) refused: u64,
    /// Bytes received per answer, heads included, where the generator says so.
    pub(crate) bytes_each: Option<u64>,
}

impl Load {
    /// What is wrong with it: figures of requests that failed or were refused are worth nothing.
    pub(crate) fn fault(&self, body: usize) -> Option<String> {
        let Self { requests, broken, refused, .. } = self;
        if *requests == 0 {
            return Some("not one answer".to_owned());
        }
        if broken + refused > 0 {
            return Some(format!(
                "of {requests} answers {refused} had another status than 200; {broken} connections, reads, writes or waits failed"
            ));
        }
        let short = self.bytes_each.filter(|bytes| *bytes < body as u64)?;
        Some(format!("{short} bytes per answer, less than its body has"))
    }
}

/// The value below which the share `quantile` of the sorted `samples` lies.
pub(crate) fn quantile(samples: &mut [u32], quantile: f64) -> Option<f64> {
    samples.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into what is in memory"
    )]
    let index = ((samples.len() as f64 - 1.0) * quantile).round() as usize;
    samples.get(index).map(|value| f64::from(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_short_answers_are_faults() {
        let good = Load { requests: 9, bytes_each: Some(1300), ..Load::default() };
        assert_eq!(good.fault(1024), None);
        assert!(Load { refused: 1, ..good.clone() }.fault(1024).is_some());
        assert!(Load { broken: 1, ..good.clone() }.fault(1024).is_some());
        assert!(Load { bytes_each: Some(9), ..good.clone() }.fault(1024).is_some());
        assert!(Load { requests: 0, ..good }.fault(1024).is_some());
    }

    #[test]
    fn quantiles_are_samples() {
        assert_eq!(quantile(&mut [], 0.5), None);
        assert_eq!(quantile(&mut [3, 1, 2], 0.5), Some(2.0));
        assert_eq!(quantile(&mut (0..=100).rev().collect::<Vec<_>>(), 0.99), Some(99.0));
    }
}
