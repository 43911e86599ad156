//! The memory of the primary's output and its one reader on the host.
//!
//! The newest subscriber wins: a daemon that was killed leaves a stream behind that nobody reads. A subscriber
//! that keeps up makes the process wait instead of losing lines; one that does not, or is absent, never does.

use std::io;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use aegis_link::Carrier;
use aegis_link::frames::{FrameReader, FramesError};
use aegis_proto::lines::OutputLine;
use aegis_proto::logs::{LogEvent, OutputStream, Subscribe};
use aegis_types::ExitStatus;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::ring::{BOUNDS, LogRing};

/// A subscriber that took nothing for this long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// Frames are sent in batches of about this size: a frame at a time costs a message of the multiplexer each.
const BATCH_BYTES: usize = 32 * 1024;

pub(crate) struct Logs {
    state: Mutex<State>,
    /// Counts up when there is something new for a subscriber.
    news: watch::Sender<u64>,
    /// Counts up when a subscriber has taken something.
    taken: watch::Sender<u64>,
}

struct State {
    ring: LogRing,
    exited: Option<ExitStatus>,
    subscriber: Option<Subscriber>,
    subscriptions: u64,
}

struct Subscriber {
    id: u64,
    seq: u64,
    progress: Instant,
}

/// What a subscriber does next.
enum Next {
    Send {
        batch: Vec<u8>,
        seq: u64,
    },
    Wait,
    /// Everything was sent, the end included.
    Done,
    /// A newer one took over.
    Replaced,
}

impl Logs {
    pub(crate) fn new() -> Self {
        let state = State { ring: LogRing::new(BOUNDS), exited: None, subscriber: None, subscriptions: 0 };
        Self { state: Mutex::new(state), news: watch::Sender::new(0), taken: watch::Sender::new(0) }
    }

    /// Adds lines. Waits only for a subscriber that makes progress, so that it loses nothing.
    pub(crate) async fn push(&self, stream: OutputStream, lines: Vec<OutputLine>) {
        if lines.is_empty() {
            return;
        }
        self.wait_for_reader().await;
        let now = unix_nanos();
        {
            let mut state = self.lock();
            for line in lines {
                state.ring.push(stream, now, line);
            }
        }
        self.announce();
    }

    /// Records the end of the primary: nothing is added afterwards.
    pub(crate) fn finish(&self, status: ExitStatus) {
        self.lock().exited = Some(status);
        self.announce();
    }

    /// Waits until the subscriber, if there is one, has the end of the primary, if there is one.
    pub(crate) async fn delivered(&self) {
        let mut taken = self.taken.subscribe();
        loop {
            {
                let state = self.lock();
                if state.subscriber.is_none() || state.exited.is_none() {
                    return;
                }
            }
            // The sender lives as long as `self`.
            let _ = taken.changed().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn announce(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    async fn wait_for_reader(&self) {
        let mut taken = self.taken.subscribe();
        loop {
            let stuck_at = {
                let state = self.lock();
                match &state.subscriber {
                    Some(s) if state.ring.is_nearly_lost(s.seq) => s.progress + STUCK_AFTER,
                    _ => return,
                }
            };
            if Instant::now() >= stuck_at {
                return;
            }
            tokio::select! {
                _ = taken.changed() => {}
                () = sleep_until(stuck_at) => {}
            }
        }
    }

    /// Serves one subscription until everything is sent, the host goes away or a newer subscription comes.
    ///
    /// # Errors
    /// The stream broke, or its first frame is no subscription.
    pub(crate) async fn serve<S: Carrier>(&self, stream: S) -> Result<(), FramesError> {
        let (reader, mut writer) = tokio::io::split(stream);
        let Some(first) = FrameReader::new(reader).next().await? else { return Ok(()) };
        let id = self.attach(Subscribe::from_frame(&first)?);
        let sent = self.send_all(id, &mut writer).await;
        self.detach(id);
        Ok(sent?)
    }

    async fn send_all(&self, id: u64, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut news = self.news.subscribe();
        let mut exit_sent = false;
        loop {
            // Marked as seen before looking, so that nothing slips in between.
            news.borrow_and_update();
            match self.next(id, &mut exit_sent) {
                Next::Send { batch, seq } => {
                    let send = async {
                        writer.write_all(&batch).await?;
                        writer.flush().await
                    };
                    tokio::select! {
                        sent = send => sent?,
                        () = self.replaced(id) => return Ok(()),
                    }
                    self.advance(id, seq);
                }
                // The sender lives as long as `self`.
                Next::Wait => drop(news.changed().await),
                Next::Done => return writer.shutdown().await,
                Next::Replaced => return Ok(()),
            }
        }
    }

    fn attach(&self, subscribe: Subscribe) -> u64 {
        let id = {
            let mut state = self.lock();
            state.subscriptions += 1;
            // A host that knows more than there is means an earlier boot.
            let seq = subscribe.after_seq.min(state.ring.last_seq());
            state.subscriber = Some(Subscriber { id: state.subscriptions, seq, progress: Instant::now() });
            state.subscriptions
        };
        self.announce();
        id
    }

    fn detach(&self, id: u64) {
        let mut state = self.lock();
        if state.subscriber.as_ref().is_some_and(|s| s.id == id) {
            state.subscriber = None;
        }
        drop(state);
        self.taken.send_modify(|count| *count += 1);
    }

    fn next(&self, id: u64, exit_sent: &mut bool) -> Next {
        let state = self.lock();
        let Some(subscriber) = state.subscriber.as_ref().filter(|s| s.id == id) else {
            return Next::Replaced;
        };
        let mut seq = subscriber.seq;
        let mut batch = Vec::new();
        while batch.len() < BATCH_BYTES
            && let Some((event, next)) = state.ring.after(seq)
        {
            append(&mut batch, event);
            seq = next;
        }
        if seq == state.ring.last_seq()
            && let Some(status) = state.exited
        {
            if *exit_sent {
                return Next::Done;
            }
            append(&mut batch, LogEvent::Exited(status));
            *exit_sent = true;
        }
        if batch.is_empty() { Next::Wait } else { Next::Send { batch, seq } }
    }

    fn advance(&self, id: u64, seq: u64) {
        if let Some(subscriber) = self.lock().subscriber.as_mut().filter(|s| s.id == id) {
            subscriber.seq = seq;
            subscriber.progress = Instant::now();
        }
        self.taken.send_modify(|count| *count += 1);
    }

    async fn replaced(&self, id: u64) {
        let mut news = self.news.subscribe();
        while self.lock().subscriber.as_ref().is_some_and(|s| s.id == id) {
            // The sender lives as long as `self`.
            let _ = news.changed().await;
        }
    }
}

fn append(batch: &mut Vec<u8>, event: LogEvent) {
    let frame = event.into_frame().encode().expect("a line is smaller than a frame may be");
    batch.extend_from_slice(&frame);
}

fn unix_nanos() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
