//! A connection to a port of the guest, from the caller's side.

use std::time::Duration;

use aegis_link::Carrier;
use aegis_link::frames::write_frame;
use aegis_proto::frame::{Frame, HEADER_LEN};
use aegis_proto::service::Service;
use aegis_proto::tcp::{Answer, Connect};
use aegis_types::GuestPort;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::driver::Grant;
use crate::error::ConnectError;
use crate::ports::WorkerError;
use crate::text;

/// Time for the guest to answer beyond what it waits for a listener.
const MARGIN: Duration = Duration::from_secs(10);
/// The longest answer, in bytes.
const ANSWER_MAX: usize = 4096;

/// An open connection. It counts as activity until it is dropped.
pub struct Connection {
    /// The bytes, with half-close.
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
    pub(crate) async fn open(grant: Grant, port: GuestPort, wait: Duration) -> Result<Self, ConnectError> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let open = async {
            let mut stream = grant.worker.open(Service::Tcp).await?;
            let connect = Connect { port, wait_ms }.into_frame();
            let answer = async {
                write_frame(&mut stream, &connect).await.map_err(|e| WorkerError(text::chain(&e)))?;
                read_answer(&mut stream).await.map_err(|e| WorkerError(text::chain(&e)))
            };
            match answer.await? {
                Answer::Connected => Ok(stream),
                Answer::Refused { message } => {
                    Err(ConnectError::Refused { port, message: text::bounded(&message) })
                }
            }
        };
        let limit = wait.saturating_add(MARGIN);
        let stream = timeout(limit, open)
            .await
            .map_err(|_| WorkerError(format!("the guest did not answer within {} s", limit.as_secs())))??;
        Ok(Self { stream, vm: VmGone(grant.gone), in_use: InUse::new(grant.in_flight) })
    }
}

/// Reads exactly one frame: what follows belongs to the connection.
async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Answer> {
    let invalid = |text: String| std::io::Error::new(std::io::ErrorKind::InvalidData, text);
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > ANSWER_MAX {
        return Err(invalid(format!("an answer of {length} bytes")));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Answer::from_frame(&Frame::new(header[0], payload)).map_err(|e| invalid(e.to_string()))
}
