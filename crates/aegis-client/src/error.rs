//! Why a request did not succeed.

use std::io;
use std::path::PathBuf;

use aegis_api::ErrorBody;

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("aegisd is not running: nothing answers at {}", socket.display())]
    NotRunning {
        /// Socket of the daemon.
        socket: PathBuf,
        /// `NotFound` or `ConnectionRefused`.
        #[source]
        source: io::Error,
    },
    /// The socket is there and cannot be used.
    #[error("cannot reach aegisd at {}", socket.display())]
    Connect {
        /// Socket of the daemon.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke before the end of the answer.
    #[error("lost the connection to aegisd")]
    Lost(#[source] hyper::Error),
    /// The connection of a process with streams broke before the end of the process.
    #[error("lost the connection to aegisd")]
    Cut(#[source] io::Error),
    /// The daemon refused or failed.
    #[error("{}", body.error)]
    Api {
        /// HTTP status.
        status: u16,
        /// What the daemon says.
        body: ErrorBody,
    },
    /// The daemon said something that this client does not understand.
    #[error("aegisd gave an answer that makes no sense: {0}")]
    Protocol(String),
}
