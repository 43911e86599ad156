//! What a policy comes to: the times and permissions that decide what an instance does by itself.

use std::time::Duration;

use aegis_types::{IdlePolicy, Policy, RestartPolicy};

use crate::error::Denied;

/// Times of instances that ask for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Idle time before the CPUs are halted.
    pub pause_after: Duration,
    /// Paused time before the memory is saved.
    pub hibernate_after: Duration,
}

/// The rules of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Idle time before the CPUs are halted; `None`: never.
    pub pause_after: Option<Duration>,
    /// Paused time before the memory is saved; `None`: never.
    pub hibernate_after: Option<Duration>,
    /// Why its memory may not be saved, if it may not.
    pub keeps_memory: Option<&'static str>,
    /// Time from a start to a stop.
    pub max_lifetime: Option<Duration>,
    /// What follows the end of its command.
    pub restart: RestartPolicy,
    /// Work that the guest does by itself keeps it awake.
    pub heeds_activity: bool,
    /// Its disk goes when its command has ended: nothing has to be brought to an end in order.
    pub ephemeral: bool,
}

impl Rules {
    /// The rules that a policy asks for.
    pub fn new(policy: &Policy, defaults: &Defaults) -> Self {
        let keeps_memory = match policy {
            Policy { ephemeral: true, .. } => Some("it belongs to `aegis run`, which deletes it"),
            Policy { no_hibernate: true, .. } => Some("it was created with `--no-hibernate`"),
            _ => None,
        };
        Self {
            pause_after: (!policy.never_pause).then(|| policy.pause_after.unwrap_or(defaults.pause_after)),
            hibernate_after: match keeps_memory {
                None if !policy.never_pause => {
                    Some(policy.hibernate_after.unwrap_or(defaults.hibernate_after))
                }
                _ => None,
            },
            keeps_memory,
            max_lifetime: policy.max_lifetime,
            restart: policy.restart,
            heeds_activity: policy.idle == IdlePolicy::Default,
            ephemeral: policy.ephemeral,
        }
    }

    /// Whether the memory may be saved.
    ///
    /// # Errors
    /// [`Denied::KeepsMemory`] says why not.
    pub fn may_hibernate(&self) -> Result<(), Denied> {
        self.keeps_memory.map_or(Ok(()), |why| Err(Denied::KeepsMemory { why }))
    }

    /// Whether an end by itself is followed by a start; `failed`: it was no exit with code 0.
    pub(super) fn restarts(&self, failed: bool) -> bool {
        match self.restart {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure => failed,
            RestartPolicy::Always => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults =
        Defaults { pause_after: Duration::from_secs(60), hibernate_after: Duration::from_secs(300) };

    #[test]
    fn absent_times_are_the_defaults_and_never_means_never() {
        let rules = Rules::new(&Policy::default(), &DEFAULTS);
        assert_eq!(rules.pause_after, Some(DEFAULTS.pause_after));
        assert_eq!(rules.hibernate_after, Some(DEFAULTS.hibernate_after));
        assert_eq!(rules.may_hibernate(), Ok(()));
        let never = Rules::new(&Policy { never_pause: true, ..Policy::default() }, &DEFAULTS);
        assert_eq!((never.pause_after, never.hibernate_after), (None, None));
        assert_eq!(never.may_hibernate(), Ok(()), "on request it is");
        for policy in [
            Policy { ephemeral: true, ..Policy::default() },
            Policy { no_hibernate: true, ..Policy::default() },
        ] {
            let rules = Rules::new(&policy, &DEFAULTS);
            assert_eq!((rules.pause_after, rules.hibernate_after), (Some(DEFAULTS.pause_after), None));
            assert!(matches!(rules.may_hibernate(), Err(Denied::KeepsMemory { .. })));
        }
    }
}
