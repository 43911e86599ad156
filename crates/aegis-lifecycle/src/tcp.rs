//! A connection to a port of the guest, from the caller's side.

use std::time::Duration;

use aegis_link::{Carrier, tcp};
use aegis_types::GuestPort;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::driver::Grant;
use crate::error::ConnectError;
use crate::ports::WorkerError;
use crate::text;

/// Time for the guest to answer beyond what it waits for a listener.
const MARGIN: Duration = Duration::from_secs(10);

/// An open connection. It counts as activity until it is dropped.
pub struct Connection {
    /// The bytes, with half-close. An end that is read is the server's; a connection that was cut off is an error.
    pub stream: Box<dyn Carrier>,
    /// Tells when the VM is gone.
    pub vm: VmGone,
    /// Ends the use.
    pub in_use: InUse,
}

/// Counts as a use of the VM until it is dropped.
pub struct InUse {
    _token: oneshot::Sender<String>,
}

impl InUse {
    pub(crate) fn new(token: oneshot::Sender<String>) -> Self {
        Self { _token: token }
    }
}

/// Learns that a VM is gone: hibernated, stopped or dead.
#[derive(Clone)]
pub struct VmGone(pub(crate) watch::Receiver<()>);

impl VmGone {
    /// Waits for it. Cancel-safe.
    pub async fn wait(&mut self) {
        // Nothing is ever sent: the sender ends with the VM.
        while self.0.changed().await.is_ok() {}
    }
}

impl Connection {
    /// Takes the answer on a stream that asked for a connection to this port, where the guest waits for `wait`.
    pub(crate) async fn open(
        grant: Grant,
        stream: Box<dyn Carrier>,
        port: GuestPort,
        wait: Duration,
    ) -> Result<Self, ConnectError> {
        let open = async {
            tcp::connected(stream).await.map_err(|e| match e {
                tcp::ConnectError::Refused(message) => {
                    ConnectError::Refused { port, message: text::bounded(&message) }
                }
                e @ tcp::ConnectError::Stream(_) => WorkerError(text::chain(&e)).into(),
            })
        };
        let limit = wait.saturating_add(MARGIN);
        let stream = timeout(limit, open)
            .await
            .map_err(|_| WorkerError(format!("the guest did not answer within {} s", limit.as_secs())))??;
        Ok(Self { stream: Box::new(stream), vm: VmGone(grant.gone), in_use: InUse::new(grant.in_flight) })
    }
}
