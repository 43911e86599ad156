//! What the parts of one network share. Everything runs on one thread: locks are held for a moment and never waited for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aegis_types::{GuestPort, NetPolicy, NetSetup};

use crate::dial::Dialer;
use crate::journal::Journal;
use crate::names::Names;

pub(crate) struct Shared {
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) host_ports: Vec<GuestPort>,
    pub(crate) name_servers: Vec<SocketAddr>,
    pub(crate) log_dir: PathBuf,
    policy: Mutex<Arc<NetPolicy>>,
    names: Mutex<Names>,
    journal: Mutex<Journal>,
}

impl Shared {
    pub(crate) fn new(setup: NetSetup, dialer: Arc<dyn Dialer>) -> Self {
        Self {
            dialer,
            host_ports: setup.host_ports,
            name_servers: setup.name_servers,
            policy: Mutex::new(Arc::new(setup.policy)),
            names: Mutex::default(),
            journal: Mutex::new(Journal::new(&setup.log_dir)),
            log_dir: setup.log_dir,
        }
    }

    pub(crate) fn policy(&self) -> Arc<NetPolicy> {
        Arc::clone(&locked(&self.policy))
    }

    pub(crate) fn set_policy(&self, policy: NetPolicy) {
        *locked(&self.policy) = Arc::new(policy);
    }

    pub(crate) fn names(&self) -> MutexGuard<'_, Names> {
        locked(&self.names)
    }

    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        locked(&self.journal)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is complete between statements, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
