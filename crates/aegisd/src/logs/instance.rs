//! The log of one instance in memory, and its numbering.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use aegis_api::LogEntry;
use aegis_types::VmId;
use tokio::sync::watch;

use super::file::LogFiles;
use super::mask::{Counted, Mask, Masker};
use super::record::{Origin, Record};

/// Bounds of the buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) struct InstanceLog {
    bounds: Bounds,
    state: Mutex<State>,
    masker: Mutex<Masker>,
    files: Mutex<LogFiles>,
    /// Told of every change of the state.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Consecutive numbers, ending before `next`.
    buffer: VecDeque<Arc<Record>>,
    bytes: usize,
    next: u64,
    /// Everything below went to the file, or failed to.
    written: u64,
    /// Nothing will be appended any more.
    over: bool,
    newest: Newest,
}

/// What is known of the newest line of a primary process.
#[derive(Debug)]
enum Newest {
    /// Only the files know: the daemon was restarted.
    InFiles,
    None,
    Known(Origin),
}

/// What [`InstanceLog::take`] found.
pub(super) enum Taken {
    Batch(Vec<Arc<Record>>),
    /// There is no such record yet.
    CaughtUp,
    /// It left the buffer, whose first record has this number.
    Evicted {
        front: u64,
    },
}

const BATCH_RECORDS: usize = 256;
const BATCH_BYTES: usize = 256 << 10;

impl InstanceLog {
    /// Opens the log. Blocks. One whose file cannot be used is kept in memory only.
    pub(super) fn open(mut files: LogFiles, bounds: Bounds) -> Self {
        let newest = files.open().unwrap_or_else(|error| {
            tracing::warn!(%error, ?files, "cannot open a log file; going on in memory");
            None
        });
        let next = newest.as_ref().map_or(0, |head| head.n + 1);
        let newest = if next == 0 { Newest::None } else { Newest::InFiles };
        let state = State { buffer: VecDeque::new(), bytes: 0, next, written: next, over: false, newest };
        Self {
            bounds,
            state: Mutex::new(state),
            masker: Mutex::default(),
            files: Mutex::new(files),
            changed: watch::Sender::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this")
    }

    fn masker(&self) -> MutexGuard<'_, Masker> {
        self.masker.lock().expect("no code panics while it holds this")
    }

    /// From now on these values are kept out of it.
    pub(super) fn set_mask(&self, mask: Mask) {
        self.masker().set(mask);
    }

    /// What may be appended of an entry; `None`: not yet.
    pub(super) fn masked(&self, entry: LogEntry, origin: Option<Origin>) -> Option<Counted> {
        self.masker().take(entry, origin)
    }

    /// What was held back of a stream that has ended, one after the other: of this exec, or of the command.
    pub(super) fn held(&self, exec: Option<&str>) -> Option<Counted> {
        self.masker().flush(exec)
    }

    fn files(&self) -> MutexGuard<'_, LogFiles> {
        self.files.lock().expect("no code panics while it holds this")
    }

    /// Numbers the entry and hands it to `queue` for the file; under one lock, so that both have one order.
    pub(super) fn append(&self, entry: LogEntry, origin: Option<Origin>, queue: impl FnOnce(Arc<Record>)) {
        let mut state = self.state();
        if state.over {
            return;
        }
        if let Some(origin) = &origin {
            state.newest = Newest::Known(origin.clone());
        }
        let record = Arc::new(Record { n: state.next, origin, entry });
        state.next += 1;
        state.bytes += record.cost();
        state.buffer.push_back(Arc::clone(&record));
        queue(record);
        drop(state);
        self.changed.send_replace(());
    }

    /// Writes records to the file and makes room in the buffer. Blocks.
    pub(super) fn write(&self, records: &[Arc<Record>]) {
        let Some(last) = records.last() else { return };
        self.files().append(records);
        let mut state = self.state();
        state.written = last.n + 1;
        while state.buffer.len() > self.bounds.records || state.bytes > self.bounds.bytes {
            match state.buffer.front() {
                Some(front) if front.n < state.written => state.bytes -= front.cost(),
                _ => break,
            }
            state.buffer.pop_front();
        }
    }

    /// Records from this number on, as far as they are in memory.
    pub(super) fn take(&self, from: u64) -> Taken {
        let state = self.state();
        if from >= state.next {
            return Taken::CaughtUp;
        }
        let front = state.buffer.front().map_or(state.next, |record| record.n);
        let Some(skip) = from.checked_sub(front) else { return Taken::Evicted { front } };
        let skip = usize::try_from(skip).expect("less than the length of the buffer");
        let mut bytes = 0;
        let fits = |record: &&Arc<Record>| {
            let fits = bytes < BATCH_BYTES;
            bytes += record.cost();
            fits
        };
        Taken::Batch(state.buffer.iter().skip(skip).take(BATCH_RECORDS).take_while(fits).cloned().collect())
    }

    /// There is a record of this number or there will be none: what waits for it has something to do.
    pub(super) fn has(&self, n: u64) -> bool {
        n < self.state().next
    }

    pub(super) fn is_over(&self) -> bool {
        self.state().over
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Both files as they are now. Blocks.
    pub(super) fn read_files(&self) -> io::Result<super::file::Chain> {
        self.files().read()
    }

    /// Highest sequence number of this VM. Blocks the first time after a restart of the daemon.
    pub(super) fn last_seq(&self, vm: &VmId) -> u64 {
        if let Some(seq) = self.masker().newest(vm) {
            return seq;
        }
        match &self.state().newest {
            Newest::None => return 0,
            Newest::Known(origin) => return if origin.vm == *vm { origin.seq } else { 0 },
            Newest::InFiles => {}
        }
        let seq = self.files().last_seq(vm).unwrap_or_else(|error| {
            // Lines are then stored twice, which is better than not at all.
            tracing::warn!(%error, "cannot read a log file");
            0
        });
        let mut state = self.state();
        if matches!(state.newest, Newest::InFiles) {
            state.newest =
                if seq == 0 { Newest::None } else { Newest::Known(Origin { vm: vm.clone(), seq }) };
        }
        seq
    }

    /// Ends the log: nothing is appended any more, readers end after what there is.
    pub(super) fn end(&self) {
        self.state().over = true;
        self.changed.send_replace(());
    }

    /// Removes the files of a log that has ended. Blocks.
    pub(super) fn remove_files(&self) -> io::Result<()> {
        self.files().remove()
    }
}
