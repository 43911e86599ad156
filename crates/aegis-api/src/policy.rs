//! From requests to [`Policy`].

use std::time::Duration;

use aegis_types::{Policy, RestartPolicy};

use crate::CreateInstance;

/// Longest time that can be asked for: clocks of every kind can still count it.
const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Wishes that make no sense, or none together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// A time that must not be nothing.
    #[error("`{0}` must be more than 0")]
    Zero(&'static str),
    /// A time beyond any use.
    #[error("`{0}` is longer than 100 years")]
    TooLong(&'static str),
    /// One takes away what the other asks for.
    #[error("`{0}` and `{1}` contradict each other")]
    Contradiction(&'static str, &'static str),
}

pub(crate) fn time(name: &'static str, ms: u64) -> Result<Duration, InvalidPolicy> {
    let time = Duration::from_millis(ms);
    if time > TIME_MAX { Err(InvalidPolicy::TooLong(name)) } else { Ok(time) }
}

impl CreateInstance {
    /// What the instance is to do by itself.
    ///
    /// # Errors
    /// [`InvalidPolicy`] when the wishes make no sense.
    pub fn policy(&self) -> Result<Policy, InvalidPolicy> {
        let contradictions = [
            (self.never_pause && self.pause_after_ms.is_some(), "never_pause", "pause_after_ms"),
            (self.no_hibernate && self.hibernate_after_ms.is_some(), "no_hibernate", "hibernate_after_ms"),
            (self.ephemeral && self.restart != RestartPolicy::No, "ephemeral", "restart"),
        ];
        if let Some((_, one, other)) = contradictions.into_iter().find(|(found, ..)| *found) {
            return Err(InvalidPolicy::Contradiction(one, other));
        }
        let max_lifetime = self.max_lifetime_ms.map(|ms| time("max_lifetime_ms", ms)).transpose()?;
        if max_lifetime == Some(Duration::ZERO) {
            return Err(InvalidPolicy::Zero("max_lifetime_ms"));
        }
        Ok(Policy {
            pause_after: self.pause_after_ms.map(|ms| time("pause_after_ms", ms)).transpose()?,
            hibernate_after: self.hibernate_after_ms.map(|ms| time("hibernate_after_ms", ms)).transpose()?,
            never_pause: self.never_pause,
            no_hibernate: self.no_hibernate,
            max_lifetime,
            restart: self.restart,
            idle: self.idle_policy,
            ephemeral: self.ephemeral,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use aegis_types::IdlePolicy;

    use super::*;

    fn policy(json: &str) -> Result<Policy, InvalidPolicy> {
        serde_json::from_str::<CreateInstance>(json).unwrap().policy()
    }

    #[test]
    fn an_old_request_asks_for_the_defaults_and_is_written_as_before() {
        assert_eq!(policy(r#"{"command":["x"]}"#), Ok(Policy::default()));
        let request = CreateInstance { command: vec!["x".into()], ..CreateInstance::default() };
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"command":["x"]}"#);
    }

    #[test]
    fn every_wish_arrives() {
        let wishes = r#"{"pause_after_ms":1000,"hibernate_after_ms":0,"max_lifetime_ms":3000,"restart":"on-failure",
            "idle_policy":"leases_only"}"#;
        let expected = Policy {
            pause_after: Some(Duration::from_secs(1)),
            hibernate_after: Some(Duration::ZERO),
            max_lifetime: Some(Duration::from_secs(3)),
            restart: RestartPolicy::OnFailure,
            idle: IdlePolicy::LeasesOnly,
            ..Policy::default()
        };
        assert_eq!(policy(wishes), Ok(expected));
        let expected = Policy { never_pause: true, no_hibernate: true, ephemeral: true, ..Policy::default() };
        assert_eq!(policy(r#"{"never_pause":true,"no_hibernate":true,"ephemeral":true}"#), Ok(expected));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (wishes, expected) in [
            (r#"{"never_pause":true,"pause_after_ms":1}"#, "`never_pause` and `pause_after_ms` contradict"),
            (r#"{"no_hibernate":true,"hibernate_after_ms":1}"#, "`no_hibernate` and `hibernate_after_ms`"),
            (r#"{"ephemeral":true,"restart":"always"}"#, "`ephemeral` and `restart`"),
            (r#"{"max_lifetime_ms":0}"#, "`max_lifetime_ms` must be more than 0"),
            (r#"{"pause_after_ms":18446744073709551615}"#, "`pause_after_ms` is longer than 100 years"),
        ] {
            let text = policy(wishes).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
