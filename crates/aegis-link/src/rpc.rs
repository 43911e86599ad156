//! JSON-RPC 2.0 over any stream: a client with concurrent calls, and a server.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use aegis_proto::jsonrpc::{Kind, MESSAGE_MAX, Message, MessageError, RpcError};
use aegis_proto::lines::{LineDecoder, LineTooLong};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::Carrier;

/// Requests of one stream that are worked on at the same time; the next one waits unread.
const CONCURRENT_MAX: usize = 32;
const QUEUE: usize = 64;
const READ_BYTES: usize = 8 * 1024;

/// A call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The peer answered with an error.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The request is larger than a message may be; it was not sent.
    #[error("the request of {0} bytes is too large")]
    TooLarge(usize),
    /// The stream is over.
    #[error("the connection ended: {0}")]
    Closed(String),
    /// The peer broke the message rules, which ended the stream.
    #[error("protocol violation: {0}")]
    Violation(String),
    /// The answer does not have the expected shape.
    #[error("unexpected answer: {0}")]
    BadResult(String),
}

/// Why a server ended a stream that its peer did not close.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The peer broke the message rules.
    #[error("protocol violation: {0}")]
    Violation(String),
    /// The stream broke.
    #[error("the stream broke")]
    Io(#[from] io::Error),
}

impl From<ServeError> for CallError {
    fn from(e: ServeError) -> Self {
        match e {
            ServeError::Violation(what) => Self::Violation(what),
            ServeError::Io(e) => Self::Closed(e.to_string()),
        }
    }
}

impl From<LineTooLong> for ServeError {
    fn from(e: LineTooLong) -> Self {
        Self::Violation(e.to_string())
    }
}

impl From<MessageError> for ServeError {
    fn from(e: MessageError) -> Self {
        Self::Violation(e.to_string())
    }
}

type Reply = oneshot::Sender<Result<Value, CallError>>;

struct Call {
    method: String,
    params: Value,
    reply: Reply,
}

/// Makes calls on a stream. Clones share it; when all are dropped the stream is closed.
#[derive(Clone)]
pub struct Client {
    calls: mpsc::Sender<Call>,
}

/// A notification: method and parameters.
pub type Notification = (String, Value);

impl Client {
    /// Starts a client. Notifications of the peer arrive on the receiver; it may be dropped.
    pub fn new<S: Carrier>(stream: S) -> (Client, mpsc::Receiver<Notification>) {
        let (calls, requests) = mpsc::channel(QUEUE);
        let (notifications_tx, notifications) = mpsc::channel(QUEUE);
        tokio::spawn(async move { ClientTask::new(stream, notifications_tx).run(requests).await });
        (Client { calls }, notifications)
    }

    /// Calls a method and waits for its answer as long as it takes.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<P: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        method: &str,
        params: &P,
    ) -> Result<R, CallError> {
        let params = serde_json::to_value(params).map_err(|e| CallError::BadResult(e.to_string()))?;
        let (reply, answer) = oneshot::channel();
        let closed = || CallError::Closed("the stream is closed".to_owned());
        self.calls.send(Call { method: method.to_owned(), params, reply }).await.map_err(|_| closed())?;
        let result = answer.await.map_err(|_| closed())??;
        serde_json::from_value(result).map_err(|e| CallError::BadResult(e.to_string()))
    }

    /// Waits until the stream is over.
    pub async fn closed(&self) {
        self.calls.closed().await;
    }
}

struct ClientTask<S: Carrier> {
    lines: LineReader<ReadHalf<S>>,
    writer: WriteHalf<S>,
    pending: HashMap<u64, Reply>,
    next_id: u64,
    notifications: Option<mpsc::Sender<Notification>>,
}

impl<S: Carrier> ClientTask<S> {
    fn new(stream: S, notifications: mpsc::Sender<Notification>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let lines = LineReader::new(reader);
        Self { lines, writer, pending: HashMap::new(), next_id: 1, notifications: Some(notifications) }
    }

    async fn run(mut self, mut calls: mpsc::Receiver<Call>) {
        let end = loop {
            tokio::select! {
                call = calls.recv() => match call {
                    Some(call) => if let Err(e) = self.send(call).await { break CallError::Closed(e.to_string()) },
                    None => break CallError::Closed("no user left".to_owned()),
                },
                line = self.lines.next() => match line {
                    Ok(Some(line)) => if let Err(e) = self.receive(&line).await { break e.into() },
                    Ok(None) => break CallError::Closed("the peer closed the stream".to_owned()),
                    Err(e) => break e.into(),
                },
            }
        };
        for (_, reply) in self.pending.drain() {
            let _ = reply.send(Err(end.clone()));
        }
        // Not waited for: the stream may be broken.
        let _ = self.writer.shutdown().await;
    }

    async fn send(&mut self, call: Call) -> io::Result<()> {
        let id = self.next_id;
        match Message::request(id, &call.method, &call.params).encode() {
            Ok(line) => {
                self.next_id += 1;
                self.pending.retain(|_, reply| !reply.is_closed());
                self.pending.insert(id, call.reply);
                self.writer.write_all(&line).await?;
                self.writer.flush().await
            }
            Err(MessageError::TooLarge(size)) => {
                let _ = call.reply.send(Err(CallError::TooLarge(size)));
                Ok(())
            }
            Err(e @ MessageError::Malformed(_)) => Err(io::Error::other(e)),
        }
    }

    async fn receive(&mut self, line: &[u8]) -> Result<(), ServeError> {
        match Message::decode(line)? {
            Kind::Response { id, outcome } => {
                // An answer that nobody waits for any more is nobody's business.
                if let Some(reply) = self.pending.remove(&id) {
                    let _ = reply.send(outcome.map_err(CallError::Rpc));
                }
                Ok(())
            }
            Kind::Notification { method, params } => {
                if let Some(to) = &self.notifications
                    && to.send((method, params)).await.is_err()
                {
                    self.notifications = None;
                }
                Ok(())
            }
            Kind::Request { method, .. } => {
                Err(ServeError::Violation(format!("unexpected request `{method}`")))
            }
        }
    }
}

/// Answers requests.
#[async_trait::async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Carries out one call. Calls of one stream run concurrently.
    async fn call(&self, method: &str, params: Value) -> Result<Value, RpcError>;
}

/// Serves a stream until the peer closes it. `outgoing` are notifications to send; when that channel ends, they do too.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve<S: Carrier>(
    stream: S,
    handler: Arc<dyn Handler>,
    mut outgoing: Option<mpsc::Receiver<Message>>,
) -> Result<(), ServeError> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut lines = LineReader::new(reader);
    let mut running: JoinSet<Message> = JoinSet::new();
    loop {
        let message = tokio::select! {
            line = lines.next(), if running.len() < CONCURRENT_MAX => {
                let Some(line) = line? else { break };
                if let Kind::Request { id, method, params } = Message::decode(&line)? {
                    let handler = Arc::clone(&handler);
                    running.spawn(async move { Message::response(id, handler.call(&method, params).await) });
                }
                continue;
            }
            Some(done) = running.join_next() => match done {
                Ok(message) => message,
                // A handler that panicked answers nothing; its caller has a deadline.
                Err(_) => continue,
            },
            message = next_of(&mut outgoing) => message,
        };
        write_message(&mut writer, &message).await?;
    }
    // The peer said everything it wanted; it may still read what is on its way.
    while let Some(done) = running.join_next().await {
        if let Ok(message) = done {
            write_message(&mut writer, &message).await?;
        }
    }
    Ok(writer.shutdown().await?)
}

async fn next_of(outgoing: &mut Option<mpsc::Receiver<Message>>) -> Message {
    if let Some(receiver) = outgoing
        && let Some(message) = receiver.recv().await
    {
        return message;
    }
    *outgoing = None;
    std::future::pending().await
}

async fn write_message<W: tokio::io::AsyncWrite + Unpin>(
    writer: &mut W,
    message: &Message,
) -> io::Result<()> {
    // An answer above the limit would be refused by the peer: say so instead of sending it.
    let line = match message.encode() {
        Ok(line) => line,
        Err(e) => match message.id() {
            Some(id) => Message::response(id, Err(RpcError::failed(e))).encode().map_err(io::Error::other)?,
            None => return Ok(()),
        },
    };
    writer.write_all(&line).await?;
    writer.flush().await
}

/// Lines of a stream. [`LineReader::next`] is cancel-safe.
struct LineReader<R> {
    reader: R,
    decoder: LineDecoder,
    buffer: Box<[u8]>,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    fn new(reader: R) -> Self {
        Self { reader, decoder: LineDecoder::new(MESSAGE_MAX), buffer: vec![0; READ_BYTES].into() }
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, ServeError> {
        loop {
            match self.decoder.next_line()? {
                Some(line) if line.is_empty() => {}
                Some(line) => return Ok(Some(line)),
                None => {
                    let count = self.reader.read(&mut self.buffer).await?;
                    if count == 0 {
                        return Ok(None);
                    }
                    self.decoder.push(&self.buffer[..count]);
                }
            }
        }
    }
}
