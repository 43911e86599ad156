//! The guest's end of the link.

use std::io;

use aegis_proto::hello::{Greeting, HELLO_MAX, Hello, SEED_MIN, Welcome};
use aegis_proto::service::{ACCEPTED, REFUSED, Service};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::line::read_line_exact;
use crate::mux::{Inbound, Mux, Side, Stream};
use crate::{Carrier, LinkError};

/// Waits for a greeting; bytes of an earlier session are skipped.
///
/// # Errors
/// The carrier ended, or the greeting breaks the rules.
pub async fn receive_hello<C: Carrier>(carrier: &mut C) -> Result<Hello, LinkError> {
    loop {
        let line = match read_line_exact(carrier, HELLO_MAX).await {
            Ok(line) => line,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => continue,
            Err(e) => return Err(e.into()),
        };
        if let Some(Greeting::Hello(hello)) = Greeting::decode(&line) {
            if hello.generation == 0 || hello.seed.len() < 2 * SEED_MIN {
                return Err(LinkError::Handshake("greeting without generation or seed".to_owned()));
            }
            return Ok(hello);
        }
    }
}

/// Tells the host on a fresh carrier that the guest may be saved now.
///
/// # Errors
/// The carrier broke.
pub async fn send_parked<C: Carrier>(carrier: &mut C) -> io::Result<()> {
    carrier.write_all(&Greeting::Parked.encode()).await?;
    carrier.flush().await
}

/// An established link, guest side.
pub struct GuestLink {
    mux: Mux,
    inbound: Inbound,
}

impl GuestLink {
    /// Answers a greeting that was applied, and starts the multiplexer.
    ///
    /// # Errors
    /// The carrier broke.
    pub async fn welcome<C: Carrier>(mut carrier: C, welcome: Welcome) -> Result<GuestLink, LinkError> {
        carrier.write_all(&Greeting::Welcome(welcome).encode()).await?;
        carrier.flush().await?;
        let (mux, inbound) = Mux::start(carrier, Side::Guest);
        Ok(GuestLink { mux, inbound })
    }

    /// The next stream that the host opened; `None` when the link ended.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.inbound.next().await.map(|stream| Incoming { stream })
    }

    /// Waits until the multiplexer is over and has dropped the carrier, so that it can be opened again.
    pub async fn ended(&mut self) {
        self.mux.ended().await;
    }

    /// Ends the link. Streams in use break.
    pub fn close(&self) {
        self.mux.close();
    }
}

/// A stream whose service was not read yet. Reading happens away from the accept loop, so a host that opens a
/// stream and says nothing delays nobody.
pub struct Incoming {
    stream: Stream,
}

impl Incoming {
    /// Reads which service is wanted. A known one is accepted; an unknown one is refused and gives `None`.
    ///
    /// # Errors
    /// The stream broke.
    pub async fn accept(mut self) -> Result<Option<(Service, Stream)>, LinkError> {
        let service = Service::from_number(self.stream.read_u16().await?);
        self.stream.write_all(&[if service.is_some() { ACCEPTED } else { REFUSED }]).await?;
        self.stream.flush().await?;
        Ok(service.map(|service| (service, self.stream)))
    }
}
