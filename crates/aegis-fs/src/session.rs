//! A stream to the guest, from the first message to its end.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use fuse_backend_rs::api::server::Server;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadHalf, WriteHalf, split,
};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::Directory;
use crate::exchange::{Exchange, MESSAGE_MAX, REQUEST_MIN, Request};
use crate::watch::Notice;

/// Requests that move content, at the same time; each may need 2 MiB.
const LONG_MAX: usize = 4;
/// Exchanges that are kept for the next long request.
const SPARE_MAX: usize = 2;
/// Invalidations on their way to a guest; what does not fit is made up for by looking at everything once more.
const NOTICES_MAX: usize = 4096;
/// Messages that arrive together are taken out of the stream together.
const READ_AHEAD: usize = 64 * 1024;

/// Why a session ended before its stream did.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream broke.
    #[error("the stream to the guest broke")]
    Stream(#[from] io::Error),
    /// The guest sent what is no message.
    #[error("the guest sent a message of {0} bytes")]
    Length(usize),
}

/// Serves a directory over a stream until it ends. Only one session of a directory at a time.
///
/// # Errors
/// See [`SessionError`]. The directory can be served again over another stream.
pub async fn serve<S>(directory: &Arc<Directory>, stream: S) -> Result<(), SessionError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = split(stream);
    let (notices, invalidations) = mpsc::channel(NOTICES_MAX);
    *directory.notices.lock().expect("no panic while held") = Some(notices);
    if directory.missed.load(Ordering::Relaxed) {
        directory.watcher.wake();
    }
    let server = Arc::new(Server::new(Arc::clone(directory)));
    let session = Arc::new(Session {
        server: Arc::clone(&server),
        writer: AsyncMutex::new(writer),
        spare: Mutex::default(),
        long: Arc::new(Semaphore::new(LONG_MAX)),
    });
    let outcome = tokio::select! {
        outcome = session.requests(reader) => outcome,
        outcome = session.invalidations(invalidations, directory) => outcome,
    };
    *directory.notices.lock().expect("no panic while held") = None;
    directory.missed.store(true, Ordering::Relaxed);
    outcome
}

struct Session<S> {
    server: Arc<Server<Arc<Directory>>>,
    writer: AsyncMutex<WriteHalf<S>>,
    spare: Mutex<Vec<Exchange>>,
    long: Arc<Semaphore>,
}

impl<S: AsyncRead + AsyncWrite + Send + 'static> Session<S> {
    async fn requests(self: &Arc<Self>, reader: ReadHalf<S>) -> Result<(), SessionError> {
        let mut reader = BufReader::with_capacity(READ_AHEAD, reader);
        let mut exchange = Exchange::new(Arc::clone(&self.server))?;
        let mut long = JoinSet::new();
        while let Some(request) = receive(&mut reader).await? {
            if !request.is_long() {
                let answer = exchange.answer(request)?;
                self.send(&answer).await?;
                continue;
            }
            let permit = Arc::clone(&self.long).acquire_owned().await.expect("never closed");
            let session = Arc::clone(self);
            // One that was answered is let go of; an error of its stream is ours as well.
            while long.try_join_next().is_some() {}
            long.spawn(async move {
                let _permit = permit;
                let mut exchange = session.exchange()?;
                let answered =
                    tokio::task::spawn_blocking(move || (exchange.answer(request), exchange)).await;
                let (answer, exchange) = answered.map_err(io::Error::other)?;
                let sent = session.send(&answer?).await;
                session.give_back(exchange);
                sent
            });
        }
        // The guest is not there any more, but what it had asked for is done.
        while long.join_next().await.is_some() {}
        Ok(())
    }

    async fn invalidations(
        &self,
        mut notices: mpsc::Receiver<Notice>,
        directory: &Directory,
    ) -> Result<(), SessionError> {
        let mut exchange = Exchange::new(Arc::clone(&self.server))?;
        while let Some(notice) = notices.recv().await {
            self.send(&exchange.invalidation(&notice)?).await?;
            if notices.is_empty() && directory.missed.load(Ordering::Relaxed) {
                directory.watcher.wake();
            }
        }
        std::future::pending().await
    }

    async fn send(&self, message: &[u8]) -> io::Result<()> {
        if message.is_empty() {
            return Ok(());
        }
        let mut writer = self.writer.lock().await;
        writer.write_all(message).await?;
        writer.flush().await
    }

    fn exchange(&self) -> io::Result<Exchange> {
        let spare = self.spare.lock().expect("no panic while held").pop();
        spare.map_or_else(|| Exchange::new(Arc::clone(&self.server)), Ok)
    }

    fn give_back(&self, exchange: Exchange) {
        let mut spare = self.spare.lock().expect("no panic while held");
        if spare.len() < SPARE_MAX {
            spare.push(exchange);
        }
    }
}

/// The next request; `None` at the end of the stream.
async fn receive<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Option<Request>, SessionError> {
    let mut length = [0; 4];
    match reader.read_exact(&mut length).await {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    let size = u32::from_le_bytes(length) as usize;
    if !(REQUEST_MIN..=MESSAGE_MAX).contains(&size) {
        return Err(SessionError::Length(size));
    }
    let mut message = vec![0; size];
    message[..4].copy_from_slice(&length);
    reader.read_exact(&mut message[4..]).await?;
    Ok(Request::new(message))
}
