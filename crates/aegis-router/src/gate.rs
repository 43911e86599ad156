//! Where a connection waits for its instance.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aegis_types::{GuestPort, InstanceId};
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
    /// Clients of the HTTP router, idle ones included. More wait in the kernel.
    pub http_clients: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { held_per_instance: 1024, held: 4096, hold: Duration::from_secs(30), http_clients: 1024 }
    }
}

/// The way to the backend, shared by everything that accepts connections.
pub struct Gate {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) limits: Limits,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    by_instance: HashMap<InstanceId, usize>,
}

/// One connection that waits.
struct Hold<'a> {
    gate: &'a Gate,
    instance: &'a InstanceId,
}

impl Gate {
    /// A gate to these instances.
    pub fn new(backend: Arc<dyn Backend>, limits: Limits) -> Arc<Self> {
        Arc::new(Self { backend, limits, held: Mutex::default() })
    }

    /// Waits for a connection, not longer than the limit.
    pub(crate) async fn connect(
        &self,
        instance: &InstanceId,
        port: GuestPort,
    ) -> Result<Connection, Refusal> {
        let _hold = self.hold(instance).ok_or(Refusal::Busy)?;
        let deadline = Instant::now() + self.limits.hold;
        let connecting = self.backend.connect(instance, port, deadline);
        timeout_at(deadline, connecting).await.unwrap_or(Err(Refusal::Timeout))
    }

    fn hold<'a>(&'a self, instance: &'a InstanceId) -> Option<Hold<'a>> {
        let mut held = self.held.lock().expect("no panic while held");
        let count = held.by_instance.get(instance).copied().unwrap_or(0);
        if held.all >= self.limits.held || count >= self.limits.held_per_instance {
            return None;
        }
        held.all += 1;
        held.by_instance.insert(instance.clone(), count + 1);
        Some(Hold { gate: self, instance })
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut held = self.gate.held.lock().expect("no panic while held");
        held.all -= 1;
        if let Some(count) = held.by_instance.get_mut(self.instance) {
            *count -= 1;
            if *count == 0 {
                held.by_instance.remove(self.instance);
            }
        }
    }
}
