//! Bytes between a client and a server in a guest.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aegis_types::{GuestPort, InstanceId};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::backend::{Connection, Io};
use crate::gate::Gate;

/// What is on its way in one direction: one message of the guest link. The rest is the sender's problem.
const COPY_BYTES: usize = 16 * 1024;
/// For what a VM that is gone sent before.
pub(crate) const IN_FLIGHT: Duration = Duration::from_millis(250);

/// Serves one client from its connection to its end, or to `reset`.
pub(crate) async fn serve(
    gate: &Arc<Gate>,
    instance: &InstanceId,
    port: GuestPort,
    mut client: TcpStream,
    reset: CancellationToken,
) {
    let relayed = async {
        // A client that leaves in the meantime is noticed afterwards: what it sent is still to be read.
        let connection = gate.connect(instance, port).await.map_err(io::Error::other)?;
        splice(&mut client, connection).await
    };
    let relayed = tokio::select! {
        relayed = relayed => relayed,
        () = reset.cancelled() => Err(io::Error::other("the port was closed")),
    };
    match relayed {
        Ok((sent, received)) => {
            debug!("{instance}: a connection to port {port} ended: {sent} bytes in, {received} bytes out");
        }
        Err(error) => {
            debug!("{instance}: a connection to port {port} was reset: {error}");
            // Without effect on a socket that is broken already.
            let _ = client.set_zero_linger();
        }
    }
}

/// Copies both ways until both ends have finished; the numbers of bytes from and to the client. After an error the
/// client must not see an end.
pub(crate) async fn splice(client: &mut impl Io, mut connection: Connection) -> io::Result<(u64, u64)> {
    let mut copying =
        std::pin::pin!(copy_bidirectional_with_sizes(client, &mut connection.stream, COPY_BYTES, COPY_BYTES));
    tokio::select! {
        copied = &mut copying => copied,
        () = &mut connection.revoked => match timeout(IN_FLIGHT, copying).await {
            Ok(copied) => copied,
            Err(_) => Err(io::Error::new(io::ErrorKind::ConnectionReset, "the VM is gone")),
        },
    }
}
