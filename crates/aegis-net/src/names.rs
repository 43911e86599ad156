//! Which names the guest was told for an address: the only link between a connection and a rule by name.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::time::Instant;

/// Addresses that are remembered. The one that expires first gives way.
const ADDRESSES_MAX: usize = 4096;
/// Names of one address, as shared hosts have many.
const NAMES_MAX: usize = 16;
/// Programs use an answer for longer than its time to live says.
const KEEP_MIN: Duration = Duration::from_secs(5 * 60);
const KEEP_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
struct Known {
    names: Vec<(String, Instant)>,
}

impl Known {
    fn until(&self) -> Option<Instant> {
        self.names.iter().map(|(_, until)| *until).max()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Names {
    by_address: HashMap<Ipv4Addr, Known>,
}

impl Names {
    /// The guest has been told this address for this name.
    pub(crate) fn learn(&mut self, name: &str, address: Ipv4Addr, ttl: Duration, now: Instant) {
        let until = now + ttl.clamp(KEEP_MIN, KEEP_MAX);
        if self.by_address.len() >= ADDRESSES_MAX && !self.by_address.contains_key(&address) {
            self.make_room(now);
        }
        let known = self.by_address.entry(address).or_insert(Known { names: Vec::new() });
        known.names.retain(|(other, expires)| other != name && *expires > now);
        if known.names.len() >= NAMES_MAX {
            known.names.remove(0);
        }
        known.names.push((name.to_owned(), until));
    }

    /// The names of an address, the last one learned at the end.
    pub(crate) fn of(&self, address: Ipv4Addr, now: Instant) -> Vec<String> {
        let known = self.by_address.get(&address);
        let names = known.into_iter().flat_map(|known| &known.names);
        names.filter(|(_, until)| *until > now).map(|(name, _)| name.clone()).collect()
    }

    fn make_room(&mut self, now: Instant) {
        self.by_address.retain(|_, known| known.until().is_some_and(|until| until > now));
        while self.by_address.len() >= ADDRESSES_MAX {
            let first =
                self.by_address.iter().min_by_key(|(_, known)| known.until()).map(|(address, _)| *address);
            if let Some(address) = first {
                self.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn names_are_kept_for_their_time_and_within_bounds() {
        let mut names = Names::default();
        let address = Ipv4Addr::new(1, 2, 3, 4);
        let start = Instant::now();
        names.learn("short", address, Duration::ZERO, start);
        names.learn("long", address, Duration::from_secs(3600), start);
        names.learn("short", address, Duration::ZERO, start);
        assert_eq!(names.of(address, start), ["long", "short"]);
        assert_eq!(names.of(address, start + Duration::from_secs(301)), ["long"]);
        for n in 0..100 {
            names.learn(&format!("n{n}"), address, Duration::ZERO, start);
        }
        assert_eq!(names.of(address, start).len(), NAMES_MAX);
        for n in 0..2 * ADDRESSES_MAX as u32 {
            names.learn("x", Ipv4Addr::from(n), Duration::from_secs(3600), start);
        }
        assert_eq!(names.by_address.len(), ADDRESSES_MAX);
        assert!(!names.of(Ipv4Addr::from(2 * ADDRESSES_MAX as u32 - 1), start).is_empty());
    }
}
