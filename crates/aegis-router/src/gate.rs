//! Where a connection waits for its instance.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aegis_types::{GuestPort, InstanceId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::backend::{Backend, Connection, Refusal};

/// How much may be going on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections that wait for one instance.
    pub held_per_instance: usize,
    /// Connections that wait for any instance.
    pub held: usize,
    /// From the client's connection to the one in the guest.
    pub hold: Duration,
    /// Connections to one instance that are open or being opened; more wait. Each is a stream of the guest link, which
    /// has a fixed number of them and needs some for other things.
    pub open_per_instance: usize,
    /// Clients of the HTTP router, idle ones included. More wait in the kernel.
    pub http_clients: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            held_per_instance: 1024,
            held: 4096,
            hold: Duration::from_secs(30),
            open_per_instance: 100,
            http_clients: 1024,
        }
    }
}

/// The way to the backend, shared by everything that accepts connections.
pub struct Gate {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) limits: Limits,
    usage: Mutex<Usage>,
}

#[derive(Default)]
struct Usage {
    held: usize,
    by_instance: HashMap<InstanceId, Instance>,
}

/// An instance, as long as somebody uses it.
struct Instance {
    held: usize,
    users: usize,
    places: Arc<Semaphore>,
}

/// One connection that waits.
struct Hold<'a> {
    gate: &'a Gate,
    instance: &'a InstanceId,
}

/// One connection that is open or being opened.
struct Place {
    gate: Arc<Gate>,
    instance: InstanceId,
    _permit: OwnedSemaphorePermit,
}

impl Gate {
    /// A gate to these instances.
    pub fn new(backend: Arc<dyn Backend>, limits: Limits) -> Arc<Self> {
        Arc::new(Self { backend, limits, usage: Mutex::default() })
    }

    /// Waits for a connection, not longer than the limit.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        instance: &InstanceId,
        port: GuestPort,
    ) -> Result<Connection, Refusal> {
        let (_hold, places) = self.hold(instance).ok_or(Refusal::Busy)?;
        let deadline = Instant::now() + self.limits.hold;
        let connecting = async {
            // Whoever waits here is not counted; those that are in its way are.
            let place = self.place(instance, places).await;
            let mut connection = self.backend.connect(instance, port, deadline).await?;
            connection.guard = Box::new((connection.guard, place));
            Ok(connection)
        };
        timeout_at(deadline, connecting).await.unwrap_or(Err(Refusal::Timeout))
    }

    fn hold<'a>(&'a self, instance: &'a InstanceId) -> Option<(Hold<'a>, Arc<Semaphore>)> {
        let mut usage = self.lock();
        let held = usage.by_instance.get(instance).map_or(0, |instance| instance.held);
        if usage.held >= self.limits.held || held >= self.limits.held_per_instance {
            return None;
        }
        usage.held += 1;
        let entry = usage.by_instance.entry(instance.clone()).or_insert_with(|| Instance {
            held: 0,
            users: 0,
            places: Arc::new(Semaphore::new(self.limits.open_per_instance)),
        });
        entry.held += 1;
        entry.users += 1;
        Some((Hold { gate: self, instance }, Arc::clone(&entry.places)))
    }

    /// To be called while holding, so that the instance is known.
    async fn place(self: &Arc<Self>, instance: &InstanceId, places: Arc<Semaphore>) -> Place {
        let permit = places.acquire_owned().await.expect("never closed");
        if let Some(entry) = self.lock().by_instance.get_mut(instance) {
            entry.users += 1;
        }
        Place { gate: Arc::clone(self), instance: instance.clone(), _permit: permit }
    }

    fn lock(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().expect("no panic while held")
    }
}

impl Usage {
    fn forget_user(&mut self, instance: &InstanceId) {
        if let Some(entry) = self.by_instance.get_mut(instance) {
            entry.users -= 1;
            if entry.users == 0 {
                self.by_instance.remove(instance);
            }
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut usage = self.gate.lock();
        usage.held -= 1;
        if let Some(entry) = usage.by_instance.get_mut(self.instance) {
            entry.held -= 1;
        }
        usage.forget_user(self.instance);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.lock().forget_user(&self.instance);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::future::pending;

    use async_trait::async_trait;

    use super::*;
    use crate::backend::Target;

    struct Always;

    #[async_trait]
    impl Backend for Always {
        async fn connect(&self, _: &InstanceId, port: GuestPort, _: Instant) -> Result<Connection, Refusal> {
            if port.get() == 1 {
                return Err(Refusal::NobodyListens);
            }
            Ok(Connection::new(tokio::io::empty(), pending(), ()))
        }
        async fn by_name(&self, _: &str) -> Option<Target> {
            None
        }
        async fn by_host(&self, _: &str) -> Option<Target> {
            None
        }
        async fn only(&self) -> Option<Target> {
            None
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_free_when_its_connection_is_over_and_nothing_is_remembered() {
        let gate = Gate::new(Arc::new(Always), Limits { open_per_instance: 1, ..Limits::default() });
        let (instance, other) = (InstanceId::from_unix_nanos(1), InstanceId::from_unix_nanos(2));
        let port = |port| GuestPort::new(port).unwrap();
        let first = gate.connect(&instance, port(80)).await.unwrap();
        assert_eq!(gate.connect(&instance, port(80)).await.unwrap_err(), Refusal::Timeout);
        gate.connect(&other, port(80)).await.unwrap();
        let mut second = Box::pin(gate.connect(&instance, port(80)));
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut second).await.is_err());
        drop(first);
        drop(second.await.unwrap());
        assert_eq!(gate.connect(&instance, port(1)).await.unwrap_err(), Refusal::NobodyListens);
        let usage = gate.lock();
        assert_eq!((usage.held, usage.by_instance.len()), (0, 0));
    }
}
