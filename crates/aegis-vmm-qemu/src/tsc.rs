//! The rate of the host's time-stamp counter (TSC).
//!
//! Under TCG a guest reads the host's counter, but nothing tells it the rate: it would measure it against an
//! emulated timer, which on a busy host gives nonsense and then a hang at random. So the guest is told.
//!
//! Two sources, in this order: CPUID leaf 0x15, where it is complete (exact), and counting ticks against the
//! monotonic clock (a few parts in a million off). `/proc/cpuinfo` and cpufreq are no sources: they show the
//! speed of the core, which on many hosts is not the rate of the counter.

use std::time::{Duration, Instant};

/// Shortest time to count ticks: reading both clocks takes well below 0.1 µs, so this bounds the error to 20 ppm.
const SPAN_MIN: Duration = Duration::from_millis(5);
const SAMPLES: usize = 8;
/// Anything else is a broken counter; the guest is better off measuring by itself.
const PLAUSIBLE_KHZ: std::ops::RangeInclusive<u64> = 100_000..=20_000_000;

/// Counts ticks from its creation on.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Option<Sample>,
}

/// Both clocks at the same moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    ticks: u64,
    time: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Sample::take() }
    }

    /// The rate in kHz; waits a few milliseconds when it has to be measured and the clock is younger than that.
    /// `None` where there is no usable counter.
    pub(crate) async fn khz(&self) -> Option<u64> {
        if let Some(khz) = from_cpuid() {
            return Some(khz);
        }
        let start = self.start?;
        let age = start.time.elapsed();
        if age < SPAN_MIN {
            tokio::time::sleep(SPAN_MIN - age).await;
        }
        rate(start, Sample::take()?)
    }
}

fn rate(start: Sample, end: Sample) -> Option<u64> {
    let nanos = u64::try_from(end.time.duration_since(start.time).as_nanos()).ok()?;
    let ticks = end.ticks.checked_sub(start.ticks)?;
    let khz = u128::from(ticks) * 1_000_000 / u128::from(nanos.max(1));
    u64::try_from(khz).ok().filter(|khz| PLAUSIBLE_KHZ.contains(khz))
}

/// Leaf 0x15: the TSC runs at `crystal Hz × numerator ÷ denominator`, where the CPU fills all three in.
fn from_leaf_15(denominator: u32, numerator: u32, crystal_hz: u32) -> Option<u64> {
    if denominator == 0 || numerator == 0 || crystal_hz == 0 {
        return None;
    }
    let khz = u64::from(crystal_hz) * u64::from(numerator) / u64::from(denominator) / 1000;
    Some(khz).filter(|khz| PLAUSIBLE_KHZ.contains(khz))
}

#[cfg(target_arch = "x86_64")]
fn from_cpuid() -> Option<u64> {
    use core::arch::x86_64::__cpuid;
    if __cpuid(0).eax < 0x15 {
        return None;
    }
    let leaf = __cpuid(0x15);
    from_leaf_15(leaf.eax, leaf.ebx, leaf.ecx)
}

#[cfg(not(target_arch = "x86_64"))]
fn from_cpuid() -> Option<u64> {
    None
}

impl Sample {
    #[cfg(target_arch = "x86_64")]
    fn take() -> Option<Self> {
        // The process may be interrupted between the two readings; the tightest of several pairs was not.
        (0..SAMPLES)
            .map(|_| {
                let before = crate::sys::time_stamp_counter();
                let time = Instant::now();
                let after = crate::sys::time_stamp_counter();
                (after.wrapping_sub(before), Sample { ticks: before + after.wrapping_sub(before) / 2, time })
            })
            .min_by_key(|(width, _)| *width)
            .map(|(_, sample)| sample)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn take() -> Option<Self> {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn leaf_15_counts_only_when_complete() {
        // A Skylake client: 24 MHz × 216 ÷ 2.
        assert_eq!(from_leaf_15(2, 216, 24_000_000), Some(2_592_000));
        assert_eq!(from_leaf_15(2, 216, 0), None);
        assert_eq!(from_leaf_15(0, 0, 0), None);
        assert_eq!(from_leaf_15(1, 1, 1), None);
    }

    #[test]
    fn a_rate_is_ticks_over_time() {
        let time = Instant::now();
        let start = Sample { ticks: 1000, time };
        let end = Sample { ticks: 1000 + 26_000_000, time: time + Duration::from_millis(10) };
        assert_eq!(rate(start, end), Some(2_600_000));
        assert_eq!(rate(end, Sample { ticks: 0, time: end.time }), None);
        assert_eq!(rate(start, Sample { ticks: 1001, time: end.time }), None);
    }

    #[cfg(target_arch = "x86_64")]
    #[tokio::test]
    async fn this_host_has_a_rate() {
        assert!(Clock::start().khz().await.is_some());
    }
}
