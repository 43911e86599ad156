//! Medians of small samples.

use std::time::Duration;

use serde::Serialize;

/// A sample of durations, in milliseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample(Vec<f64>);

/// What is said of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// Not exceeded by 95 of 100.
    pub(crate) p95: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) count: usize,
}

impl Sample {
    pub(crate) fn add(&mut self, duration: Duration) {
        self.0.push(duration.as_secs_f64() * 1e3);
    }

    /// `None` for an empty sample.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        let p95 = sorted[(sorted.len() * 95).div_ceil(100) - 1];
        Some(Summary { median, p95, min, max, count: sorted.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_no_values() {
        let of = |values: &[u64]| {
            let mut sample = Sample::default();
            values.iter().for_each(|&ms| sample.add(Duration::from_millis(ms)));
            sample.summary()
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3, 1, 2]), Some(Summary { median: 2.0, p95: 3.0, min: 1.0, max: 3.0, count: 3 }));
        let twenty: Vec<u64> = (1..=20).collect();
        assert_eq!(of(&twenty).map(|summary| summary.p95), Some(19.0));
        assert_eq!(of(&[4, 1]), Some(Summary { median: 2.5, p95: 4.0, min: 1.0, max: 4.0, count: 2 }));
    }
}
