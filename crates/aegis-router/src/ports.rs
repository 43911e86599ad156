//! One listener per exposed port.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use aegis_types::{GuestPort, InstanceId, PublicPort};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gate::Gate;
use crate::listen::Listener;
use crate::relay;

/// A port could not be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody listens there.
    #[error("public port {port} is already in use")]
    Busy {
        /// The port.
        port: PublicPort,
        /// The instance, if it is one of ours.
        by: Option<InstanceId>,
    },
    /// The guest port has a public port, and not the one that is wanted.
    #[error("guest port {guest} is already reachable as public port {public}")]
    Elsewhere {
        /// Inside.
        guest: GuestPort,
        /// Outside.
        public: PublicPort,
    },
    /// The system does not allow it.
    #[error("cannot listen on {}", match .port { Some(port) => format!("public port {port}"), None => "any port".to_owned() })]
    Listen {
        /// The port, if a certain one was wanted.
        port: Option<PublicPort>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// [`Ports::shut_down`] was called.
    #[error("the router is shutting down")]
    ShutDown,
}

/// A port that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPort {
    /// Of which instance.
    pub instance: InstanceId,
    /// Inside.
    pub guest: GuestPort,
    /// Outside.
    pub public: PublicPort,
}

/// The listeners. Dropping it closes them and resets their connections.
pub struct Ports {
    gate: Arc<Gate>,
    instances: Mutex<BTreeMap<InstanceId, Instance>>,
    tasks: TaskTracker,
    down: CancellationToken,
}

struct Instance {
    ports: BTreeMap<GuestPort, Port>,
    /// Ends its connections, those of ports that were closed since included.
    reset: CancellationToken,
}

struct Port {
    public: PublicPort,
    stop: CancellationToken,
    /// Owns the sockets.
    accepting: JoinHandle<()>,
}

impl Port {
    /// When this returns, the port can be opened by anybody.
    async fn close(self) {
        self.stop.cancel();
        // It does not panic, and was not aborted.
        let _ = self.accepting.await;
    }
}

impl Ports {
    /// No ports.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self { gate, instances: Mutex::default(), tasks: TaskTracker::new(), down: CancellationToken::new() }
    }

    /// Opens a port on both loopback addresses: this one, or any that is free. A guest port that is open already stays
    /// as it is. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        &self,
        instance: &InstanceId,
        guest: GuestPort,
        public: Option<PublicPort>,
    ) -> Result<PublicPort, OpenError> {
        let mut instances = self.lock();
        // Looked at under the lock, which shutting down takes afterwards.
        if self.down.is_cancelled() {
            return Err(OpenError::ShutDown);
        }
        if let Some(open) = instances.get(instance).and_then(|i| i.ports.get(&guest)) {
            return match public {
                Some(public) if public != open.public => {
                    Err(OpenError::Elsewhere { guest, public: open.public })
                }
                _ => Ok(open.public),
            };
        }
        let listen = |source| OpenError::Listen { port: public, source };
        let listener = match (Listener::on_loopback(public.map_or(0, PublicPort::get)), public) {
            (Ok(listener), _) => listener,
            (Err(error), Some(port)) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(OpenError::Busy { port, by: owner(&instances, port) });
            }
            (Err(error), _) => return Err(listen(error)),
        };
        let bound = listener.local_addr().map_err(listen)?.port();
        let public = PublicPort::new(bound).map_err(|e| listen(io::Error::other(e)))?;
        let entry = instances
            .entry(instance.clone())
            .or_insert_with(|| Instance { ports: BTreeMap::new(), reset: self.down.child_token() });
        let stop = self.down.child_token();
        let accepting = self.tasks.spawn(accept(Accepting {
            listener,
            gate: Arc::clone(&self.gate),
            instance: instance.clone(),
            guest,
            stop: stop.clone(),
            reset: entry.reset.clone(),
            tasks: self.tasks.clone(),
        }));
        entry.ports.insert(guest, Port { public, stop, accepting });
        Ok(public)
    }

    /// Closes a port; connections that are established or held go on. `false` when it was not open.
    pub async fn close(&self, instance: &InstanceId, guest: GuestPort) -> bool {
        let port = self.lock().get_mut(instance).and_then(|i| i.ports.remove(&guest));
        match port {
            Some(port) => {
                port.close().await;
                true
            }
            None => false,
        }
    }

    /// Closes every port of an instance and resets its connections.
    pub async fn close_all(&self, instance: &InstanceId) {
        let Some(instance) = self.lock().remove(instance) else { return };
        instance.reset.cancel();
        for port in instance.ports.into_values() {
            port.close().await;
        }
    }

    /// What is open, in the order of instances and guest ports.
    pub fn list(&self) -> Vec<OpenPort> {
        let instances = self.lock();
        let of_instance = |(id, instance): (&InstanceId, &Instance)| {
            let open = |(&guest, port): (&GuestPort, &Port)| OpenPort {
                instance: id.clone(),
                guest,
                public: port.public,
            };
            instance.ports.iter().map(open).collect::<Vec<_>>()
        };
        instances.iter().flat_map(of_instance).collect()
    }

    /// Closes everything, resets every connection and waits until nothing is left.
    pub async fn shut_down(&self) {
        {
            let mut instances = self.lock();
            self.down.cancel();
            instances.clear();
        }
        self.tasks.close();
        // Every task looks at its token whatever it waits for.
        self.tasks.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Instance>> {
        self.instances.lock().expect("no panic while held")
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.down.cancel();
    }
}

fn owner(instances: &BTreeMap<InstanceId, Instance>, public: PublicPort) -> Option<InstanceId> {
    let has = |instance: &Instance| instance.ports.values().any(|port| port.public == public);
    instances.iter().find(|(_, instance)| has(instance)).map(|(id, _)| id.clone())
}

struct Accepting {
    listener: Listener,
    gate: Arc<Gate>,
    instance: InstanceId,
    guest: GuestPort,
    stop: CancellationToken,
    reset: CancellationToken,
    tasks: TaskTracker,
}

async fn accept(this: Accepting) {
    loop {
        let client = tokio::select! {
            (client, _) = this.listener.accept() => client,
            () = this.stop.cancelled() => return,
        };
        let (gate, instance, reset) = (Arc::clone(&this.gate), this.instance.clone(), this.reset.clone());
        let guest = this.guest;
        this.tasks.spawn(async move { relay::serve(&gate, &instance, guest, client, reset).await });
    }
}
