//! What the router needs from whoever owns the instances.

use std::any::Any;
use std::pin::Pin;

use aegis_types::{GuestPort, InstanceId};
use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// Instances, as far as connections are concerned.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Connects to a port of an instance: counts the connection first, so that no idle timer is in the way, then wakes
    /// the instance, then opens the connection, trying again while nobody listens yet. Dropping the future takes
    /// everything back but the wake.
    ///
    /// # Errors
    /// See [`Refusal`]. Nothing is counted any more.
    async fn connect(
        &self,
        instance: &InstanceId,
        port: GuestPort,
        deadline: Instant,
    ) -> Result<Connection, Refusal>;

    /// The instance with this id, else the one with this name, letter by letter.
    async fn by_name(&self, name: &str) -> Option<Target>;

    /// The instance that `<label>.localhost` means: its id or its name. Host names have no case, so an instance whose
    /// name is the label letter by letter goes first, then any that differs in case only.
    async fn by_host(&self, label: &str) -> Option<Target>;

    /// The only instance there is, in whatever state; `None` when there are none or several.
    async fn only(&self) -> Option<Target>;
}

/// An instance that a request may be meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Which one.
    pub id: InstanceId,
    /// Its first exposed port.
    pub port: Option<GuestPort>,
    /// It may be woken.
    pub enabled: bool,
}

/// A byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Completes when the VM under a connection is gone: stopped, hibernated or dead.
pub type Revoked = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection to a port of an instance. The fields are dropped in this order.
pub struct Connection {
    /// Its bytes. An end that is read is the server's; a connection that was cut off is an error. Shutting it down is
    /// a half-close; dropping it before both ends is a cut.
    pub stream: Box<dyn Io>,
    /// Completes when nothing can come any more.
    pub revoked: Revoked,
    /// The count: dropped when the connection is over.
    pub guard: Box<dyn Any + Send>,
}

impl Connection {
    /// A connection of these parts.
    pub fn new(
        stream: impl Io + 'static,
        revoked: impl Future<Output = ()> + Send + 'static,
        guard: impl Any + Send,
    ) -> Self {
        Self { stream: Box::new(stream), revoked: Box::pin(revoked), guard: Box::new(guard) }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// There is no connection, and why. The texts are for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It may not be woken.
    #[error("the instance is disabled; `aegis instance enable` allows it to be woken")]
    Disabled,
    /// There is no such instance (any more).
    #[error("there is no such instance")]
    NotFound,
    /// It could not be woken.
    #[error("the instance did not come up: {message}")]
    Failed {
        /// What went wrong.
        message: String,
    },
    /// Too many wait already, or the host has no room.
    #[error("too many connections are waiting")]
    Busy,
    /// It was not there in time.
    #[error("the instance was not ready in time")]
    Timeout,
    /// It runs, but nobody listens on the port.
    #[error("nobody listens on the port in the instance")]
    NobodyListens,
}
