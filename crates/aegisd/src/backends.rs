//! Instances, as the router sees them.

use std::sync::{Arc, OnceLock, Weak};

use aegis_lifecycle::{ConnectError, Denied, Instance, Manager};
use aegis_router::{Backend, Connection, Refusal, Target};
use aegis_types::{GuestPort, InstanceId};
use async_trait::async_trait;
use tokio::time::Instant;

use crate::exposes::Exposes;

/// The adapter. The router is made before what it serves, so both are given to it later.
#[derive(Default)]
pub(crate) struct Backends {
    /// The ports own the router, which owns this: only a weak link back does not keep all of them for ever.
    parts: OnceLock<(Manager, Weak<Exposes>)>,
}

impl Backends {
    /// Gives it the instances; until then there are none. Called once.
    pub(crate) fn introduce(&self, manager: Manager, exposes: &Arc<Exposes>) {
        if self.parts.set((manager, Arc::downgrade(exposes))).is_err() {
            tracing::error!("the router was given instances twice");
        }
    }

    fn manager(&self) -> Option<&Manager> {
        self.parts.get().map(|(manager, _)| manager)
    }

    fn target(&self, instance: &Instance) -> Option<Target> {
        let exposes = self.parts.get()?.1.upgrade()?;
        let id = instance.spec().id.clone();
        Some(Target { port: exposes.first_port(&id), id, enabled: instance.status().enabled })
    }
}

#[async_trait]
impl Backend for Backends {
    async fn connect(
        &self,
        instance: &InstanceId,
        port: GuestPort,
        deadline: Instant,
    ) -> Result<Connection, Refusal> {
        let found = self.manager().and_then(|manager| manager.find(instance.as_str()));
        let instance = found.ok_or(Refusal::NotFound)?;
        let wait = deadline.saturating_duration_since(Instant::now());
        let connected = instance.connect(port, wait).await.map_err(refusal)?;
        let mut vm = connected.vm;
        Ok(Connection::new(connected.stream, async move { vm.wait().await }, connected.in_use))
    }

    async fn by_name(&self, name: &str) -> Option<Target> {
        self.target(&self.manager()?.find(name)?)
    }

    async fn by_host(&self, label: &str) -> Option<Target> {
        if let Some(found) = self.by_name(label).await {
            return Some(found);
        }
        let is_meant = |instance: &Instance| {
            let spec = instance.spec();
            spec.handle
                .as_ref()
                .map_or(spec.id.as_str(), |handle| handle.as_str())
                .eq_ignore_ascii_case(label)
        };
        self.target(&self.manager()?.list().into_iter().find(is_meant)?)
    }

    async fn only(&self) -> Option<Target> {
        match self.manager()?.list().as_slice() {
            [only] => self.target(only),
            _ => None,
        }
    }
}

fn refusal(error: ConnectError) -> Refusal {
    match error {
        ConnectError::Denied(Denied::Disabled) => Refusal::Disabled,
        ConnectError::Denied(Denied::Deleted) => Refusal::NotFound,
        ConnectError::Denied(Denied::Busy) => Refusal::Busy,
        ConnectError::Refused { .. } => Refusal::NobodyListens,
        e @ (ConnectError::Denied(_) | ConnectError::Worker(_)) => Refusal::Failed { message: e.to_string() },
    }
}
