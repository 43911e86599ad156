//! The host's end of the link.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aegis_proto::control;
use aegis_proto::hello::{Greeting, HELLO_MAX, Hello, Welcome};
use aegis_proto::service::{ACCEPTED, Service};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

use crate::line::read_line_exact;
use crate::mux::{LinkEnd, Mux, Side, Stream};
use crate::rpc;
use crate::{Carrier, LinkError, buffered};

/// Bytes that a guest may send before its answer: what was left in the pipe by an earlier session.
const STALE_MAX: usize = 1 << 20;

/// A greeting is repeated after this time without an answer: a guest that re-opens its port throws away what was in
/// it, greeting included. It skips those that come twice.
const REPEAT_AFTER: Duration = Duration::from_millis(250);

/// Greets the guest and starts the multiplexer once it answered. Waits as long as it takes: the caller owns the
/// deadline and may drop the future.
///
/// # Errors
/// The carrier ended, or the answer does not fit the greeting.
pub async fn greet<C: Carrier>(carrier: C, hello: Hello) -> Result<(HostLink, Welcome), LinkError> {
    let nonce = hello.nonce.clone();
    let generation = hello.generation;
    // The leading newline ends whatever half line an earlier session left in the pipe.
    let greeting = [b"\n".as_slice(), &Greeting::Hello(hello).encode()].concat();
    // It stays buffered when it is lent and returned: what was read ahead must not be lost.
    let carrier = buffered(carrier);
    let (mut reader, mut writer) = tokio::io::split(carrier);
    let welcome = {
        let answer = wait_for(&mut reader, |greeting| match greeting {
            Greeting::Welcome(welcome) if welcome.nonce == nonce => Some(welcome),
            _ => None,
        });
        tokio::pin!(answer);
        loop {
            writer.write_all(&greeting).await?;
            writer.flush().await?;
            tokio::select! {
                welcome = &mut answer => break welcome?,
                () = tokio::time::sleep(REPEAT_AFTER) => {}
            }
        }
    };
    let carrier = reader.unsplit(writer);
    if welcome.generation == 0 || welcome.generation > generation {
        return Err(LinkError::Handshake(format!(
            "the guest wants generation {}, we offered {generation}",
            welcome.generation
        )));
    }
    let (lent, returned) = Lent::new(carrier);
    let (mux, _) = Mux::start(lent, Side::Host);
    Ok((HostLink { mux, returned: Arc::new(Mutex::new(Some(returned))) }, welcome))
}

/// Skips lines, even over-long and binary ones, until one is the greeting that is wanted.
async fn wait_for<R: AsyncRead + Unpin, T>(
    carrier: &mut R,
    mut wanted: impl FnMut(Greeting) -> Option<T>,
) -> Result<T, LinkError> {
    let mut skipped = 0;
    loop {
        let line = match read_line_exact(carrier, HELLO_MAX).await {
            Ok(line) => line,
            // The rest of an over-long line reads as lines of its own.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => vec![0; HELLO_MAX],
            Err(e) => return Err(e.into()),
        };
        if let Some(found) = Greeting::decode(&line).and_then(&mut wanted) {
            return Ok(found);
        }
        skipped += line.len() + 1;
        if skipped > STALE_MAX {
            return Err(LinkError::Handshake(format!("no answer within {STALE_MAX} bytes")));
        }
    }
}

/// Where the carrier arrives when the multiplexer is over; taken by whoever parks.
type Returned = oneshot::Receiver<Box<dyn Carrier>>;

/// An established link. Clones share it; when all are dropped it closes.
#[derive(Clone)]
pub struct HostLink {
    mux: Mux,
    returned: Arc<Mutex<Option<Returned>>>,
}

impl HostLink {
    /// Opens a stream to a guest service.
    ///
    /// # Errors
    /// [`LinkError::Refused`] when the harness does not offer it; otherwise the link ended or broke.
    pub async fn open(&self, service: Service) -> Result<Stream, LinkError> {
        self.open_with(service, &[]).await
    }

    /// Opens a stream and sends its first bytes at once, which saves the way there and back: they are with the service even
    /// if this fails.
    ///
    /// # Errors
    /// As for [`HostLink::open`].
    pub async fn open_with(&self, service: Service, first: &[u8]) -> Result<Stream, LinkError> {
        let mut stream = self.mux.open().await?;
        stream.write_all(&[&service.number().to_be_bytes(), first].concat()).await?;
        stream.flush().await?;
        match stream.read_u8().await? {
            ACCEPTED => Ok(stream),
            _ => Err(LinkError::Refused(service.number())),
        }
    }

    /// Waits for the end of the link.
    pub async fn ended(&self) -> LinkEnd {
        self.mux.ended().await
    }

    /// Ends the link. Streams in use break.
    pub fn close(&self) {
        self.mux.close();
    }

    /// Parks the guest: afterwards the VM may be saved, and a later greeting works. The link is over on success
    /// and on failure. The carrier that is left has to be kept until the VM is saved: a guest that sees its host go
    /// would have to open the port again when it is restored.
    ///
    /// # Errors
    /// The guest did not park.
    pub async fn park(&self) -> Result<Box<dyn Carrier>, LinkError> {
        let stream = self.open(Service::Control).await?;
        let (client, _notifications) = rpc::Client::new(stream);
        let parked: Result<(), _> = client.call(control::PARK, &()).await;
        parked.map_err(|e| LinkError::Handshake(format!("park: {e}")))?;
        drop(client);
        self.mux.close();
        let receiver = self.returned.lock().expect("no panic while held").take();
        let Some(receiver) = receiver else { return Err(LinkError::Ended(LinkEnd::Closed)) };
        let mut carrier = receiver.await.map_err(|_| LinkError::Ended(LinkEnd::Closed))?;
        wait_for(&mut carrier, |greeting| (greeting == Greeting::Parked).then_some(())).await?;
        Ok(carrier)
    }
}

/// A carrier that comes back when the multiplexer lets go of it: parking goes on with the same connection.
struct Lent {
    carrier: Option<Box<dyn Carrier>>,
    back: Option<oneshot::Sender<Box<dyn Carrier>>>,
}

impl Lent {
    fn new<C: Carrier>(carrier: C) -> (Self, Returned) {
        let (back, returned) = oneshot::channel();
        (Self { carrier: Some(Box::new(carrier)), back: Some(back) }, returned)
    }

    fn get(&mut self) -> std::pin::Pin<&mut Box<dyn Carrier>> {
        std::pin::Pin::new(self.carrier.as_mut().expect("given back only in drop"))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(carrier), Some(back)) = (self.carrier.take(), self.back.take()) {
            // Nobody waits when the link simply ended; the carrier is then dropped here.
            let _ = back.send(carrier);
        }
    }
}

mod lent_io {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Lent;

    impl AsyncRead for Lent {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            b: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.get().poll_read(cx, b)
        }
    }

    impl AsyncWrite for Lent {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, b: &[u8]) -> Poll<io::Result<usize>> {
            self.get().poll_write(cx, b)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.get().poll_flush(cx)
        }

        // The multiplexer may end; the carrier lives on for the next greeting.
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.get().poll_flush(cx)
        }
    }
}
