//! The ports of instances on the host: what is remembered of them, and whether somebody listens.
//!
//! **Invariants:** the port of an instance stays the same for as long as it is exposed, through every rest of the
//! instance and every restart of the daemon, unless nobody chose it and somebody else has taken it. A disabled instance
//! keeps its ports and nobody listens on them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aegis_api::Endpoint;
use aegis_router::{Gate, OpenError, Ports};
use aegis_store::{ExposeRow, Store, StoreError};
use aegis_types::{Expose, GuestPort, InstanceId, Protocol, PublicPort};

use crate::text::chain;

/// See the module.
pub(crate) struct Exposes {
    ports: Ports,
    store: Store,
    known: Mutex<HashMap<InstanceId, BTreeMap<GuestPort, Exposed>>>,
}

/// A port that is exposed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exposed {
    public: PublicPort,
    /// The user chose the public port.
    chosen: bool,
    protocol: Protocol,
    /// Why nobody listens, if nobody does although somebody should.
    problem: Option<String>,
}

/// A port could not be exposed; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExposeError {
    /// Nobody can listen there.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It could not be remembered.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Exposes {
    pub(crate) fn new(gate: Arc<Gate>, store: Store) -> Self {
        Self { ports: Ports::new(gate), store, known: Mutex::default() }
    }

    /// Takes over what an earlier daemon remembered and listens for the enabled instances. Returns what the user should
    /// know, by instance.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub(crate) async fn restore(
        &self,
        is_enabled: impl Fn(&InstanceId) -> bool,
    ) -> Result<Vec<(InstanceId, String)>, StoreError> {
        let mut problems = Vec::new();
        for row in self.store.load_exposes().await? {
            let ExposeRow { instance_id, guest, public, chosen, protocol } = row;
            let exposed = Exposed { public, chosen, protocol, problem: None };
            self.known().entry(instance_id.clone()).or_default().insert(guest, exposed);
            if is_enabled(&instance_id) {
                problems.extend(self.listen(&instance_id, guest).await.map(|text| (instance_id, text)));
            }
        }
        Ok(problems)
    }

    /// Exposes a port and listens on it if the instance is enabled. The same again is fine.
    ///
    /// # Errors
    /// See [`ExposeError`].
    pub(crate) async fn expose(
        &self,
        id: &InstanceId,
        expose: Expose,
        enabled: bool,
    ) -> Result<Endpoint, ExposeError> {
        let known = self.known().get(id).and_then(|ports| ports.get(&expose.guest)).cloned();
        if let Some(known) = &known {
            if let Some(public) = expose.public.filter(|public| *public != known.public) {
                let (guest, known) = (expose.guest, known.public);
                tracing::debug!(%guest, wanted = %public, "it is exposed already");
                return Err(OpenError::Elsewhere { guest, public: known }.into());
            }
            if enabled {
                self.listen(id, expose.guest).await;
            }
            return Ok(Self::endpoint(expose.guest, known));
        }
        // Also for a disabled instance: that is how a free port is found, and a busy one noticed.
        let public = self.ports.open(id, expose.guest, expose.public)?;
        let exposed =
            Exposed { public, chosen: expose.public.is_some(), protocol: expose.protocol, problem: None };
        if !enabled {
            self.ports.close(id, expose.guest).await;
        }
        self.known().entry(id.clone()).or_default().insert(expose.guest, exposed.clone());
        Ok(Self::endpoint(expose.guest, &exposed))
    }

    /// Remembers what was exposed of an instance, which is in the registry by now.
    ///
    /// # Errors
    /// The registry cannot be written.
    pub(crate) async fn record(&self, id: &InstanceId) -> Result<(), StoreError> {
        for (guest, exposed) in self.of(id) {
            self.store.save_expose(row(id, guest, &exposed)).await?;
        }
        Ok(())
    }

    /// Takes back [`Exposes::expose`]; `false` if the port is not exposed. Connections go on.
    ///
    /// # Errors
    /// The registry cannot be written; the port stays exposed.
    pub(crate) async fn unexpose(&self, id: &InstanceId, guest: GuestPort) -> Result<bool, StoreError> {
        if !self.of(id).contains_key(&guest) {
            return Ok(false);
        }
        self.store.delete_expose(id.clone(), guest).await?;
        if let Some(ports) = self.known().get_mut(id) {
            ports.remove(&guest);
        }
        self.ports.close(id, guest).await;
        Ok(true)
    }

    /// Listens on all ports of an instance that was enabled. Returns what the user should know.
    pub(crate) async fn open(&self, id: &InstanceId) -> Vec<String> {
        let mut problems = Vec::new();
        for guest in self.of(id).into_keys() {
            problems.extend(self.listen(id, guest).await);
        }
        problems
    }

    /// Listens no more for an instance that was disabled, and resets its connections.
    pub(crate) async fn close(&self, id: &InstanceId) {
        self.ports.close_all(id).await;
    }

    /// The same for an instance that is gone, of which nothing is remembered any more.
    pub(crate) async fn forget(&self, id: &InstanceId) {
        self.known().remove(id);
        self.ports.close_all(id).await;
    }

    /// The ports of an instance, in the order of guest ports.
    pub(crate) fn endpoints(&self, id: &InstanceId) -> Vec<Endpoint> {
        self.of(id).iter().map(|(guest, exposed)| Self::endpoint(*guest, exposed)).collect()
    }

    /// The guest port that a request without one is meant for.
    pub(crate) fn first_port(&self, id: &InstanceId) -> Option<GuestPort> {
        self.known().get(id)?.keys().next().copied()
    }

    /// Listens no more at all.
    pub(crate) async fn shut_down(&self) {
        self.ports.shut_down().await;
    }

    /// Listens on a port that is known. Returns what is wrong or different now.
    async fn listen(&self, id: &InstanceId, guest: GuestPort) -> Option<String> {
        let Exposed { public, chosen, protocol, .. } = self.of(id).remove(&guest)?;
        let opened = match self.ports.open(id, guest, Some(public)) {
            Err(OpenError::Busy { .. }) if !chosen => self.ports.open(id, guest, None),
            other => other,
        };
        let (public, problem) = match opened {
            Ok(now) => (now, None),
            Err(error) => (public, Some(chain(&error))),
        };
        let moved = problem.is_none() && public != self.of(id).get(&guest)?.public;
        let exposed = Exposed { public, chosen, protocol, problem: problem.clone() };
        self.known().entry(id.clone()).or_default().insert(guest, exposed.clone());
        if moved {
            if let Err(error) = self.store.save_expose(row(id, guest, &exposed)).await {
                tracing::warn!(error = %chain(&error), "cannot remember a public port");
            }
            return Some(format!(
                "guest port {guest} is now public port {public}, because somebody else has the earlier one"
            ));
        }
        problem.map(|why| format!("guest port {guest} cannot be reached from outside: {why}"))
    }

    fn endpoint(guest: GuestPort, exposed: &Exposed) -> Endpoint {
        Endpoint {
            guest_port: guest,
            public_port: exposed.public,
            protocol: exposed.protocol,
            problem: exposed.problem.clone(),
        }
    }

    fn of(&self, id: &InstanceId) -> BTreeMap<GuestPort, Exposed> {
        self.known().get(id).cloned().unwrap_or_default()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<InstanceId, BTreeMap<GuestPort, Exposed>>> {
        // The map is consistent between statements.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn row(id: &InstanceId, guest: GuestPort, exposed: &Exposed) -> ExposeRow {
    ExposeRow {
        instance_id: id.clone(),
        guest,
        public: exposed.public,
        chosen: exposed.chosen,
        protocol: exposed.protocol,
    }
}
