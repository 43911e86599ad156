//! When to try again.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::error::Problem;
use crate::options::Retries;

/// Attempts at a mirror: behind it is the registry itself.
const MIRROR_ATTEMPTS_MAX: u32 = 2;

/// The attempts of one operation at one endpoint.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: Retries,
    failed: u32,
}

impl Backoff {
    pub(crate) fn new(policy: &Retries, mirror: bool) -> Self {
        let mut policy = policy.clone();
        if mirror {
            policy.attempts_max = policy.attempts_max.min(MIRROR_ATTEMPTS_MAX);
        }
        Self { policy, failed: 0 }
    }

    /// Waits until the next attempt is due, or gives the problem back if there is to be none.
    pub(crate) async fn wait(&mut self, problem: Problem) -> Result<(), Problem> {
        match self.next(&problem) {
            Some(wait) => {
                tracing::debug!(%problem, wait_ms = wait.as_millis(), "will try again");
                tokio::time::sleep(wait).await;
                Ok(())
            }
            None => Err(problem),
        }
    }

    /// Something was achieved: the next failure is a first one again.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }

    fn next(&mut self, problem: &Problem) -> Option<Duration> {
        if !problem.may_pass() {
            return None;
        }
        self.failed += 1;
        if self.failed >= self.policy.attempts_max {
            return None;
        }
        let own =
            self.policy.first_wait.saturating_mul(1 << (self.failed - 1).min(16)).min(self.policy.wait_max);
        match problem.retry_after() {
            Some(asked) if asked > self.policy.wait_max => None,
            // Never earlier than asked; those who were refused together should not come back together.
            Some(asked) => Some(asked + jitter(own) / 2),
            None => Some(own - jitter(own) / 2),
        }
    }
}

/// A random part of the duration.
fn jitter(of: Duration) -> Duration {
    // Without randomness all wait the same time, which works too.
    let share = getrandom::u32().unwrap_or(0);
    of.mul_f64(f64::from(share) / f64::from(u32::MAX))
}

/// The wait that an answer asks for, in seconds or as a date (RFC 9110, 10.2.3). Anything else is ignored.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use reqwest::header::HeaderValue;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> Retries {
        Retries { attempts_max: 4, first_wait: SECOND, wait_max: 3 * SECOND }
    }

    fn limited(retry_after: Option<Duration>) -> Problem {
        Problem::RateLimited { retry_after, said: None }
    }

    #[test]
    fn waits_double_and_end() {
        let mut backoff = Backoff::new(&policy(), false);
        for longest in [1, 2, 3] {
            let wait = backoff.next(&limited(None)).unwrap();
            assert!(wait >= longest * SECOND / 2 && wait <= longest * SECOND, "{wait:?} {longest}");
        }
        assert_eq!(backoff.next(&limited(None)), None);
        backoff.reset();
        assert!(backoff.next(&limited(None)).is_some());
        let mut mirror = Backoff::new(&policy(), true);
        assert!(mirror.next(&limited(None)).is_some());
        assert_eq!(mirror.next(&limited(None)), None);
    }

    #[test]
    fn what_the_registry_asks_for_is_kept_or_too_long() {
        let wait = Backoff::new(&policy(), false).next(&limited(Some(2 * SECOND))).unwrap();
        assert!(wait >= 2 * SECOND && wait < 3 * SECOND, "{wait:?}");
        assert_eq!(Backoff::new(&policy(), false).next(&limited(Some(4 * SECOND))), None);
    }

    #[test]
    fn what_will_not_pass_is_not_tried_again() {
        assert_eq!(Backoff::new(&policy(), false).next(&Problem::NotFound { said: None }), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let asked = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(asked("7"), Some(7 * SECOND));
        assert_eq!(asked("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60 * SECOND));
        assert_eq!(asked("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        for bad in ["-1", "soon", "99999999999999999999", ""] {
            assert_eq!(asked(bad), None, "{bad}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
