//! QMP, QEMU's control protocol (<https://www.qemu.org/docs/master/interop/qmp-spec.html>): one JSON object a line.
//!
//! [`connect`] gives a [`Client`] for callers and a [`Connection`] that somebody has to drive. The peer is a VMM
//! that its guest may have taken over: lines are bounded, and whatever is not QMP ends the connection.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use aegis_vmm::VmmError;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};

/// The longest line, in bytes.
const LINE_MAX: usize = 1 << 20;
const READ_BYTES: usize = 4096;
/// Commands that wait to be written; callers wait beyond that.
const QUEUE: usize = 16;
/// Halting CPUs also flushes the disks, which a busy host may delay.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    /// The VMM does not speak QMP (any more).
    #[error("the VMM broke the QMP protocol: {0}")]
    Violation(String),
    /// The socket broke.
    #[error("the QMP connection broke")]
    Io(#[from] io::Error),
}

/// QEMU tells that it is about to end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Shutdown {
    /// The guest asked for it.
    pub(crate) guest: bool,
    /// QEMU's name for the cause.
    #[serde(default)]
    pub(crate) reason: String,
}

/// What QEMU tells unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It is about to end.
    Shutdown(Shutdown),
    /// The CPUs run.
    Resumed,
    /// The state of a migration, which is what saving and restoring are, in QEMU's words.
    Migration(String),
}

type Reply = oneshot::Sender<Result<Value, String>>;

struct Call {
    command: &'static str,
    arguments: Option<Value>,
    reply: Reply,
}

/// Gives commands. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Client {
    calls: mpsc::Sender<Call>,
}

impl Client {
    /// Carries out a command that has no arguments, and whose result does not matter.
    pub(crate) async fn execute(&self, command: &'static str) -> Result<(), VmmError> {
        self.call(command, None).await.map(drop)
    }

    /// Carries out a command with arguments. Commands of several futures that are polled together are sent together
    /// and carried out in their order.
    pub(crate) async fn execute_with(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, VmmError> {
        self.call(command, Some(arguments)).await
    }

    /// Asks for something.
    pub(crate) async fn query(&self, command: &'static str) -> Result<Value, VmmError> {
        self.call(command, None).await
    }

    async fn call(&self, command: &'static str, arguments: Option<Value>) -> Result<Value, VmmError> {
        let ended = || VmmError::Ended(format!("no answer to `{command}`"));
        let call = async {
            let (reply, answer) = oneshot::channel();
            self.calls.send(Call { command, arguments, reply }).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())
        };
        match tokio::time::timeout(DEADLINE, call).await {
            Ok(answer) => {
                answer?.map_err(|message| VmmError::Refused { command: command.to_owned(), message })
            }
            Err(_) => {
                let timeout_ms = u64::try_from(DEADLINE.as_millis()).expect("a small constant");
                Err(VmmError::Timeout { command: command.to_owned(), timeout_ms })
            }
        }
    }
}

/// The connection behind a [`Client`].
pub(crate) struct Connection<S> {
    stream: S,
    calls: mpsc::Receiver<Call>,
    /// QEMU has introduced itself, and the handshake was sent: it carries out in order whatever comes after it.
    greeted: bool,
    ready: Option<oneshot::Sender<()>>,
    pending: HashMap<u64, Reply>,
    next_id: u64,
    received: Vec<u8>,
}

/// A client for a stream, and a channel that fires when QEMU is ready for commands.
pub(crate) fn connect<S>(stream: S) -> (Client, Connection<S>, oneshot::Receiver<()>) {
    let (calls_tx, calls) = mpsc::channel(QUEUE);
    let (ready_tx, ready) = oneshot::channel();
    let connection = Connection {
        stream,
        calls,
        greeted: false,
        ready: Some(ready_tx),
        pending: HashMap::new(),
        next_id: 1,
        received: Vec::new(),
    };
    (Client { calls: calls_tx }, connection, ready)
}

/// The members of any line that we look at.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    #[serde(default, rename = "return")]
    result: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

/// Data of the event of the same name.
#[derive(Deserialize)]
struct Migration {
    status: String,
}

/// Id of the command that ends the handshake.
const HANDSHAKE: u64 = 0;

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Moves commands and answers until QEMU closes the connection. Calls that are open then fail.
    pub(crate) async fn drive(mut self, mut on_event: impl FnMut(Event)) -> Result<(), QmpError> {
        loop {
            tokio::select! {
                // Commands wait for the handshake.
                call = self.calls.recv(), if self.greeted => match call {
                    Some(call) => self.send_call(call).await?,
                    // Events still matter when nobody will give a command any more.
                    None => return self.listen(on_event).await,
                },
                line = next_line(&mut self.stream, &mut self.received) => match line? {
                    Some(line) => self.receive(&line, &mut on_event).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn listen(mut self, mut on_event: impl FnMut(Event)) -> Result<(), QmpError> {
        while let Some(line) = next_line(&mut self.stream, &mut self.received).await? {
            self.receive(&line, &mut on_event).await?;
        }
        Ok(())
    }

    async fn send_call(&mut self, call: Call) -> io::Result<()> {
        let id = self.next_id;
        self.next_id += 1;
        // Callers that gave up leave nothing behind.
        self.pending.retain(|_, reply| !reply.is_closed());
        self.pending.insert(id, call.reply);
        self.send(id, call.command, call.arguments).await
    }

    async fn send(&mut self, id: u64, command: &str, arguments: Option<Value>) -> io::Result<()> {
        let mut message = json!({"execute": command, "id": id});
        if let Some(arguments) = arguments {
            message["arguments"] = arguments;
        }
        let line = format!("{message}\n");
        self.stream.write_all(line.as_bytes()).await?;
        self.stream.flush().await
    }

    async fn receive(&mut self, line: &[u8], on_event: &mut impl FnMut(Event)) -> Result<(), QmpError> {
        let line: Line = serde_json::from_slice(line).map_err(|e| QmpError::Violation(e.to_string()))?;
        match line {
            Line { greeting: Some(_), .. } if !self.greeted => {
                self.greeted = true;
                self.send(HANDSHAKE, "qmp_capabilities", None).await?;
            }
            Line { event: Some(event), data, .. } => {
                if let Some(event) = known_event(&event, data.unwrap_or_default())? {
                    on_event(event);
                }
            }
            Line { id: Some(HANDSHAKE), result: Some(_), .. } => {
                if let Some(ready) = self.ready.take() {
                    // Whoever started the VM may be gone already.
                    let _ = ready.send(());
                }
            }
            Line { id: Some(id), error: Some(refusal), .. } => self.answer(id, Err(refusal.desc)),
            Line { id: Some(id), result: Some(result), .. } => self.answer(id, Ok(result)),
            other => return Err(QmpError::Violation(format!("unexpected message {other:?}"))),
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, outcome: Result<Value, String>) {
        // An answer that nobody waits for any more is nobody's business.
        if let Some(reply) = self.pending.remove(&id) {
            let _ = reply.send(outcome);
        }
    }
}

/// The event, if it matters to us.
fn known_event(name: &str, data: Value) -> Result<Option<Event>, QmpError> {
    let malformed = |e: serde_json::Error| QmpError::Violation(e.to_string());
    Ok(match name {
        "SHUTDOWN" => Some(Event::Shutdown(serde_json::from_value(data).map_err(malformed)?)),
        "RESUME" => Some(Event::Resumed),
        "MIGRATION" => {
            let Migration { status } = serde_json::from_value(data).map_err(malformed)?;
            Some(Event::Migration(status))
        }
        _ => None,
    })
}

/// The next line without its newline; `None` at the end. Cancel-safe: what was read stays in `received`.
async fn next_line<R: AsyncRead + Unpin>(
    reader: &mut R,
    received: &mut Vec<u8>,
) -> Result<Option<Vec<u8>>, QmpError> {
    let mut scanned = 0;
    loop {
        if let Some(at) = received[scanned..].iter().position(|&b| b == b'\n') {
            let rest = received.split_off(scanned + at + 1);
            let mut line = std::mem::replace(received, rest);
            line.truncate(scanned + at);
            return Ok(Some(line));
        }
        scanned = received.len();
        if scanned > LINE_MAX {
            return Err(QmpError::Violation(format!("line longer than {LINE_MAX} bytes")));
        }
        received.reserve(READ_BYTES);
        if reader.read_buf(received).await? == 0 {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::io::{AsyncBufReadExt as _, BufReader, DuplexStream};
    use tokio::task::JoinHandle;

    type Driven = JoinHandle<(Result<(), QmpError>, Vec<Event>)>;

    fn start() -> (Client, BufReader<DuplexStream>, oneshot::Receiver<()>, Driven) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (client, connection, ready) = connect(ours);
        let driven = tokio::spawn(async move {
            let mut events = Vec::new();
            let end = connection.drive(|event| events.push(event)).await;
            (end, events)
        });
        (client, BufReader::new(theirs), ready, driven)
    }

    async fn read(qemu: &mut BufReader<DuplexStream>) -> String {
        let mut line = String::new();
        qemu.read_line(&mut line).await.unwrap();
        line
    }

    async fn write(qemu: &mut BufReader<DuplexStream>, text: &str) {
        qemu.write_all(text.as_bytes()).await.unwrap();
    }

    async fn handshake(qemu: &mut BufReader<DuplexStream>, ready: oneshot::Receiver<()>) {
        write(qemu, "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n").await;
        assert_eq!(read(qemu).await, "{\"execute\":\"qmp_capabilities\",\"id\":0}\n");
        write(qemu, "{\"return\": {}, \"id\": 0}\r\n").await;
        ready.await.unwrap();
    }

    #[tokio::test]
    async fn commands_are_matched_to_their_answers() {
        let (client, mut qemu, ready, driven) = start();
        handshake(&mut qemu, ready).await;
        let calls = async { tokio::join!(client.execute("stop"), client.execute("cont")) };
        let peer = async {
            assert_eq!(read(&mut qemu).await, "{\"execute\":\"stop\",\"id\":1}\n");
            assert_eq!(read(&mut qemu).await, "{\"execute\":\"cont\",\"id\":2}\n");
            write(&mut qemu, "{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n")
                .await;
            write(&mut qemu, "{\"event\": \"STOP\", \"timestamp\": {}}\r\n{\"return\": {}, \"id\": 1}\r\n")
                .await;
        };
        let ((stop, cont), ()) = tokio::join!(calls, peer);
        assert!(stop.is_ok());
        assert!(matches!(cont, Err(VmmError::Refused { message, .. }) if message == "no"));
        drop(qemu);
        assert!(driven.await.unwrap().0.is_ok());
        assert!(matches!(client.execute("stop").await, Err(VmmError::Ended(_))));
    }

    #[tokio::test]
    async fn the_cause_of_a_shutdown_is_reported_even_without_a_client() {
        let (client, mut qemu, ready, driven) = start();
        handshake(&mut qemu, ready).await;
        drop(client);
        write(
            &mut qemu,
            "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\r\n",
        )
        .await;
        drop(qemu);
        let (end, events) = driven.await.unwrap();
        assert!(end.is_ok());
        let shutdown = Shutdown { guest: true, reason: "guest-reset".into() };
        assert_eq!(events, [Event::Shutdown(shutdown)]);
    }

    #[tokio::test]
    async fn commands_follow_the_handshake_at_once_and_in_order() {
        let (client, mut qemu, _ready, driven) = start();
        let calls = async {
            tokio::try_join!(
                client.execute_with("migrate-incoming", json!({"uri": "fd:5"})),
                client.query("query-status"),
            )
        };
        let peer = async {
            write(&mut qemu, "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await;
            // Nothing is answered before everything was asked.
            assert_eq!(read(&mut qemu).await, "{\"execute\":\"qmp_capabilities\",\"id\":0}\n");
            let incoming: Value = serde_json::from_str(&read(&mut qemu).await).unwrap();
            assert_eq!(incoming["arguments"], json!({"uri": "fd:5"}));
            let status: Value = serde_json::from_str(&read(&mut qemu).await).unwrap();
            assert_eq!((&status["execute"], status.get("arguments")), (&json!("query-status"), None));
            write(&mut qemu, "{\"return\": {}, \"id\": 0}\r\n{\"return\": {}, \"id\": 1}\r\n").await;
            write(&mut qemu, "{\"return\": {\"running\": true}, \"id\": 2}\r\n").await;
        };
        let (answers, ()) = tokio::join!(calls, peer);
        assert_eq!(answers.unwrap().1, json!({"running": true}));
        for event in [
            r#"{"event": "MIGRATION", "data": {"status": "completed"}}"#,
            r#"{"event": "RESUME"}"#,
            r#"{"event": "STOP"}"#,
        ] {
            write(&mut qemu, &format!("{event}\r\n")).await;
        }
        drop((client, qemu));
        assert_eq!(driven.await.unwrap().1, [Event::Migration("completed".into()), Event::Resumed]);
    }

    #[tokio::test]
    async fn a_vmm_that_breaks_the_rules_is_cut_off() {
        for attack in [
            "no json\n".to_owned(),
            "{}\n".to_owned(),
            "[1]\n".to_owned(),
            "x".repeat(LINE_MAX + 2 * READ_BYTES),
        ] {
            let (_client, mut qemu, _ready, driven) = start();
            // The connection may be gone before everything is written.
            let _ = qemu.write_all(attack.as_bytes()).await;
            assert!(matches!(driven.await.unwrap().0, Err(QmpError::Violation(_))));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_vmm_is_a_timeout() {
        let (client, mut qemu, ready, _driven) = start();
        handshake(&mut qemu, ready).await;
        assert!(matches!(client.execute("stop").await, Err(VmmError::Timeout { timeout_ms: 10_000, .. })));
    }
}
