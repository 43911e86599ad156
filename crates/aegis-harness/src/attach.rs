//! Those who are attached to the primary process: they see its output as it is written, and may write its input.
//!
//! **Invariant:** one who does not read holds the process back, as a slow terminal does, but not for ever: then they are let go.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aegis_link::frames::{FrameReader, write_frame};
use aegis_proto::control::{StartFailure, StartFailureKind, Started, Streams};
use aegis_proto::exec::{Attach, ExecEvent};
use aegis_proto::logs::OutputStream;
use aegis_types::ExitStatus;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::debug;

use crate::exec::{output_event, receive_input, refuse};
use crate::harness::Core;
use crate::input::Terminal;

/// What a terminal showed last, for those who attach later.
const REPLAY_BYTES: usize = 64 * 1024;
/// Pieces that one who is attached may not have read yet.
const QUEUE: usize = 16;
/// Time for one who is attached to read.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time for the first one to come.
const FIRST_WAIT: Duration = Duration::from_secs(30);

type Piece = (OutputStream, Vec<u8>);

#[derive(Default)]
struct State {
    /// It is known how the process is connected.
    streams: Streams,
    pid: Option<u32>,
    /// Gone when somebody ended the input.
    input: Option<mpsc::Sender<Vec<u8>>>,
    terminal: Option<Arc<Terminal>>,
    replay: VecDeque<u8>,
    listeners: Vec<mpsc::Sender<Piece>>,
    exit: Option<ExitStatus>,
}

pub(crate) struct Attachments {
    state: Mutex<State>,
    came: watch::Sender<bool>,
}

/// One who is attached.
struct Attached {
    pid: u32,
    input: Option<mpsc::Sender<Vec<u8>>>,
    terminal: Option<Arc<Terminal>>,
    replay: Vec<u8>,
    pieces: mpsc::Receiver<Piece>,
}

impl Attachments {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), came: watch::Sender::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// The process runs, and is connected like this.
    pub(crate) fn connect(
        &self,
        pid: u32,
        streams: Streams,
        input: mpsc::Sender<Vec<u8>>,
        terminal: Option<Terminal>,
    ) {
        let mut state = self.lock();
        state.pid = Some(pid);
        state.streams = streams;
        state.input = (streams.stdin || streams.tty).then_some(input);
        state.terminal = terminal.map(Arc::new);
    }

    /// Waits for the first one if the process is to be listened to only then, but not for ever.
    pub(crate) async fn first(&self) {
        if !self.lock().streams.attach_first {
            return;
        }
        let mut came = self.came.subscribe();
        // The sender is a field of `self`.
        if timeout(FIRST_WAIT, came.wait_for(|came| *came)).await.is_err() {
            debug!("nobody attached");
        }
    }

    /// Shows everybody what was written.
    pub(crate) async fn show(&self, stream: OutputStream, bytes: &[u8]) {
        let listeners = {
            let mut state = self.lock();
            if state.streams.tty {
                state.replay.extend(bytes);
                let excess = state.replay.len().saturating_sub(REPLAY_BYTES);
                state.replay.drain(..excess);
            }
            // Whoever comes after this has the bytes already.
            state.listeners.clone()
        };
        for listener in listeners {
            let piece = (stream, bytes.to_vec());
            // An error means that they went away.
            if timeout(PATIENCE, listener.send(piece)).await.is_err() {
                self.lock().listeners.retain(|other| !other.same_channel(&listener));
            }
        }
    }

    /// The process has ended, and everything that it wrote was shown.
    pub(crate) fn ended(&self, status: ExitStatus) {
        let mut state = self.lock();
        state.exit = Some(status);
        state.listeners.clear();
        state.input = None;
        state.terminal = None;
    }

    fn attach(&self) -> Option<Attached> {
        let mut state = self.lock();
        let pid = state.pid?;
        let (listener, pieces) = mpsc::channel(QUEUE);
        state.listeners.retain(|listener| !listener.is_closed());
        if state.exit.is_none() {
            state.listeners.push(listener);
        }
        self.came.send_replace(true);
        Some(Attached {
            pid,
            input: state.input.clone(),
            terminal: state.terminal.clone(),
            replay: state.replay.iter().copied().collect(),
            pieces,
        })
    }

    /// Nobody can write the input any more.
    fn end_input(&self) {
        let mut state = self.lock();
        if !state.streams.tty {
            state.input = None;
        }
    }
}

/// Serves one who wants to be attached.
pub(crate) async fn serve<R, W>(core: &Core, request: Attach, frames: FrameReader<R>, mut writer: W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let attachments = &core.primary.attachments;
    let Some(attached) = attachments.attach() else {
        let message = "the command has not been started".to_owned();
        return refuse(&mut writer, StartFailure { kind: StartFailureKind::Resources, message }).await;
    };
    let _delivery = core.deliver();
    let Attached { pid, input, terminal, replay, mut pieces } = attached;
    if let (Some(terminal), Some(size)) = (&terminal, request.size)
        && let Err(error) = terminal.resize(size)
    {
        debug!("cannot resize the terminal of {pid}: {error}");
    }
    let send = async {
        let mut event = Some(ExecEvent::Started(Started { pid }));
        let mut replay = Some(replay).filter(|replay| !replay.is_empty());
        while let Some(next) = event {
            if write_frame(&mut writer, &next.into_frame()).await.is_err() {
                return;
            }
            event = match replay.take() {
                Some(replay) => Some(ExecEvent::Stdout(replay)),
                None => pieces.recv().await.map(|(stream, bytes)| output_event(stream, bytes)),
            };
        }
        // Without an end they were let go, and their stream ends without one.
        let exit = attachments.lock().exit;
        if let Some(status) = exit {
            let _ = write_frame(&mut writer, &ExecEvent::Exit(status).into_frame()).await;
        }
        let _ = writer.shutdown().await;
    };
    let receive = receive_input(core, pid, input, terminal.as_deref(), frames, || attachments.end_input());
    tokio::select! {
        () = send => {}
        () = receive => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn connected(streams: Streams) -> Attachments {
        let attachments = Attachments::new();
        assert!(attachments.attach().is_none(), "nothing runs");
        attachments.connect(7, streams, mpsc::channel(1).0, None);
        attachments
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_does_not_read_is_let_go() {
        let attachments = connected(Streams::default());
        let mut stuck = attachments.attach().unwrap();
        let mut reads = attachments.attach().unwrap();
        let count = QUEUE + 3;
        let show = async {
            for n in 0..count {
                attachments.show(OutputStream::Stdout, &n.to_le_bytes()).await;
            }
            attachments.ended(ExitStatus::exited(0));
        };
        let read = async {
            let mut pieces = 0;
            while reads.pieces.recv().await.is_some() {
                pieces += 1;
            }
            pieces
        };
        let ((), pieces) = tokio::join!(show, read);
        assert_eq!(pieces, count);
        let mut pieces = 0;
        while stuck.pieces.recv().await.is_some() {
            pieces += 1;
        }
        assert_eq!(pieces, QUEUE, "it can tell that something is missing: its stream ends without an end");
    }

    #[tokio::test]
    async fn a_screen_is_kept_and_bounded() {
        let attachments = connected(Streams { tty: true, ..Streams::default() });
        attachments.show(OutputStream::Stdout, &[b'a'; 1000]).await;
        attachments.show(OutputStream::Stdout, &vec![b'b'; REPLAY_BYTES - 1]).await;
        let replay = attachments.attach().unwrap().replay;
        assert_eq!((replay.len(), replay[0], replay[1]), (REPLAY_BYTES, b'a', b'b'));
        let without = connected(Streams::default());
        without.show(OutputStream::Stdout, b"a").await;
        assert!(without.attach().unwrap().replay.is_empty(), "the log has it");
    }

    #[tokio::test]
    async fn input_is_ended_once_for_all_unless_it_is_a_terminal() {
        for (tty, stays) in [(true, true), (false, false)] {
            let attachments = connected(Streams { stdin: true, tty, ..Streams::default() });
            attachments.end_input();
            assert_eq!(attachments.attach().unwrap().input.is_some(), stays);
        }
        assert!(connected(Streams::default()).attach().unwrap().input.is_none(), "nobody asked for it");
    }
}
