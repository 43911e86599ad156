//! One address for all instances: each request goes to the one that it names.
//!
//! A request gets a connection of its own to the guest, so nothing is pooled across a pause, and an instance is counted
//! busy only while a request is under way. Bodies are streams in both directions.

mod choice;
mod forward;
mod heads;
mod problem;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::gate::Gate;
use crate::listen::Listener;

/// The head of a message.
const HEAD_BYTES: usize = 64 * 1024;
/// What is buffered of a message; more than a head, so that one that is too long is answered.
const BUFFER_BYTES: usize = HEAD_BYTES + 16 * 1024;
/// From the connection, or the end of the last request, to a whole head.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The router cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP router cannot listen on {address}")]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// Why; of kind [`io::ErrorKind::AddrInUse`] when somebody else does.
    #[source]
    pub source: io::Error,
}

/// The HTTP router. Dropping it closes it and resets its connections.
pub struct HttpRouter {
    address: SocketAddr,
    tasks: TaskTracker,
    down: CancellationToken,
}

/// What the requests of one client share.
struct Client {
    gate: Arc<Gate>,
    peer: IpAddr,
    local: IpAddr,
    tasks: TaskTracker,
    down: CancellationToken,
    /// Its place among the clients, kept by what outlives HTTP.
    _place: OwnedSemaphorePermit,
}

impl HttpRouter {
    /// Listens: on both loopback addresses when the address is `127.0.0.1`. Port 0 is any that is free. Must be called
    /// in a tokio runtime.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(gate: Arc<Gate>, address: SocketAddr) -> Result<Self, BindError> {
        let listener = if address.ip() == Ipv4Addr::LOCALHOST {
            Listener::on_loopback(address.port())
        } else {
            Listener::on(address)
        };
        let failed = |source| BindError { address, source };
        let listener = listener.map_err(failed)?;
        let router = Self {
            address: listener.local_addr().map_err(failed)?,
            tasks: TaskTracker::new(),
            down: CancellationToken::new(),
        };
        router.tasks.spawn(accept(listener, gate, router.tasks.clone(), router.down.clone()));
        Ok(router)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Closes it, resets every connection and waits until nothing is left.
    pub async fn shut_down(&self) {
        self.down.cancel();
        self.tasks.close();
        // Every task looks at the token whatever it waits for.
        self.tasks.wait().await;
    }
}

impl Drop for HttpRouter {
    fn drop(&mut self) {
        self.down.cancel();
    }
}

async fn accept(listener: Listener, gate: Arc<Gate>, tasks: TaskTracker, down: CancellationToken) {
    let places = Arc::new(Semaphore::new(gate.limits.http_clients));
    let next = async || {
        let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
        (listener.accept().await, place)
    };
    loop {
        let ((stream, peer), place) = tokio::select! {
            next = next() => next,
            () = down.cancelled() => return,
        };
        let client = Client {
            gate: Arc::clone(&gate),
            peer: peer.ip(),
            local: stream.local_addr().map_or(peer.ip(), |address| address.ip()),
            tasks: tasks.clone(),
            down: down.clone(),
            _place: place,
        };
        tasks.spawn(serve(stream, Arc::new(client)));
    }
}

async fn serve(stream: TcpStream, client: Arc<Client>) {
    let down = client.down.clone();
    let service = service_fn(move |request| {
        let client = Arc::clone(&client);
        async move { Ok::<_, Infallible>(forward::answer(&client, request).await) }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_header_size(HEAD_BYTES)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let cut = tokio::select! {
        served = &mut connection => match served {
            Ok(()) => false,
            Err(error) => {
                debug!("an HTTP client's connection broke: {error}");
                // The server's body was cut off. Without a length, an end would look like the whole of it.
                error.is_user()
            }
        },
        () = down.cancelled() => true,
    };
    if cut && let Some(parts) = connection.into_parts() {
        // Without effect on a socket that is broken already.
        let _ = parts.io.inner().set_zero_linger();
    }
}
