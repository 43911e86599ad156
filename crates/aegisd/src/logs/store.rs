//! All logs, and the thread that writes them to disk.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::thread;

use aegis_api::{LogEntry, LogSource, LogStream};
use aegis_lifecycle::ports::{LogSink, SystemMessage};
use aegis_proto::logs::{LogLine, OutputStream};
use aegis_types::{InstanceId, VmId};
use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task;

use super::file::{self, LogFiles};
use super::follow::Reader;
use super::instance::{Bounds, InstanceLog};
use super::mask::Mask;
use super::record::{Origin, Record};
use crate::lock::HomeLock;
use crate::rotate::Rotation;

const BUFFER: Bounds = Bounds { records: 10_000, bytes: 5 << 20 };
/// Records that may wait for the disk, of all instances together.
const QUEUE: usize = 512;

/// The logs of all instances.
#[derive(Debug)]
pub(crate) struct LogStore {
    dir: PathBuf,
    bounds: Bounds,
    rotation: Rotation,
    logs: RwLock<HashMap<InstanceId, Arc<InstanceLog>>>,
    writes: mpsc::Sender<Write>,
}

enum Write {
    Record(Arc<InstanceLog>, Arc<Record>),
    /// Answered when everything queued before is written; after the last one nothing is written any more.
    Sync {
        done: oneshot::Sender<()>,
        last: bool,
    },
}

impl LogStore {
    /// Opens the logs of these instances and removes those of any other. Holds the lock for as long as it writes,
    /// which goes on for a moment after it was dropped. Blocks.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub(crate) fn open(
        dir: &Path,
        instances: &[InstanceId],
        rotation: Rotation,
        lock: HomeLock,
    ) -> io::Result<LogStore> {
        Self::with_bounds(dir, instances, BUFFER, rotation, lock)
    }

    pub(super) fn with_bounds(
        dir: &Path,
        instances: &[InstanceId],
        bounds: Bounds,
        rotation: Rotation,
        held: impl Send + 'static,
    ) -> io::Result<LogStore> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        remove_orphans(dir, instances)?;
        let (writes, queue) = mpsc::channel(QUEUE);
        let write = move || {
            let closed = write_all(queue);
            drop(held);
            if let Some(closed) = closed {
                let _ = closed.send(());
            }
        };
        thread::Builder::new().name("logs".to_owned()).spawn(write)?;
        let store = LogStore { dir: dir.to_owned(), bounds, rotation, logs: RwLock::default(), writes };
        for id in instances {
            store.insert(id);
        }
        Ok(store)
    }

    fn insert(&self, id: &InstanceId) {
        let files = LogFiles::new(&self.dir, id, self.rotation);
        let log = Arc::new(InstanceLog::open(files, self.bounds));
        self.logs.write().expect("no code panics while it holds this").insert(id.clone(), log);
    }

    /// Starts the log of a new instance. Before that, and after [`LogStore::remove`], what is appended to it is
    /// dropped.
    pub(crate) async fn create(self: &Arc<Self>, id: InstanceId) {
        let store = Arc::clone(self);
        task::spawn_blocking(move || store.insert(&id)).await.expect("opening a log does not panic");
    }

    /// Ends the log of an instance and removes its files. Idempotent.
    ///
    /// # Errors
    /// A file cannot be removed; what has no instance is removed when the daemon starts again.
    pub(crate) async fn remove(&self, id: &InstanceId) -> io::Result<()> {
        let removed = self.logs.write().expect("no code panics while it holds this").remove(id);
        let Some(log) = removed else { return Ok(()) };
        log.end();
        task::spawn_blocking(move || log.remove_files()).await.expect("removing files does not panic")
    }

    /// A reader at the beginning of an instance's log.
    pub(crate) fn read(&self, id: &InstanceId) -> Option<Reader> {
        self.get(id).map(|log| Reader::new(id.clone(), log))
    }

    fn get(&self, id: &InstanceId) -> Option<Arc<InstanceLog>> {
        self.logs.read().expect("no code panics while it holds this").get(id).cloned()
    }

    /// Appends an entry to the log that it names. Waits for the disk, never for readers.
    pub(crate) async fn append(&self, entry: LogEntry) {
        self.append_record(entry, None).await;
    }

    async fn append_record(&self, entry: LogEntry, origin: Option<Origin>) {
        let Some(log) = self.get(&entry.instance_id) else { return };
        // Room in the queue first: numbering and queueing are then one step.
        let Ok(room) = self.writes.reserve().await else { return };
        let Some((entry, origin)) = log.masked(entry, origin) else { return };
        let queued = Arc::clone(&log);
        log.append(entry, origin, |record| room.send(Write::Record(queued, record)));
    }

    /// From now on these values are kept out of the log of an instance, and what was held back for earlier ones is in it.
    pub(crate) async fn mask(&self, id: &InstanceId, mask: Mask) {
        let Some(log) = self.get(id) else { return };
        self.append_held(&log, None).await;
        log.set_mask(mask);
    }

    /// An exec has said its last word.
    pub(crate) async fn exec_ended(&self, id: &InstanceId, exec: &str) {
        if let Some(log) = self.get(id) {
            self.append_held(&log, Some(exec)).await;
        }
    }

    async fn append_held(&self, log: &Arc<InstanceLog>, exec: Option<&str>) {
        while let Some((entry, origin)) = log.held(exec) {
            let Ok(room) = self.writes.reserve().await else { return };
            let queued = Arc::clone(log);
            log.append(entry, origin, |record| room.send(Write::Record(queued, record)));
        }
    }

    /// Ends all logs, so that readers end, and waits until everything is in the files and the lock is given back.
    pub(crate) async fn close(&self) {
        for log in self.logs.read().expect("no code panics while it holds this").values() {
            log.end();
        }
        self.sync(true).await;
    }

    async fn sync(&self, last: bool) {
        let (done, answer) = oneshot::channel();
        // An error means that the thread has ended, which is what was wanted.
        if self.writes.send(Write::Sync { done, last }).await.is_ok() {
            let _ = answer.await;
        }
    }
}

fn remove_orphans(dir: &Path, instances: &[InstanceId]) -> io::Result<()> {
    let known: HashSet<&InstanceId> = instances.iter().collect();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let owner = entry.file_name().to_str().and_then(file::owner);
        if owner.is_some_and(|id| !known.contains(&id)) {
            tracing::info!(file = %entry.path().display(), "removing the log of an instance that is gone");
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(%error, "cannot remove it");
            }
        }
    }
    Ok(())
}

/// Writes records in batches: each run of records of one log becomes one write. Returns whom to tell of the end.
fn write_all(mut queue: mpsc::Receiver<Write>) -> Option<oneshot::Sender<()>> {
    let mut batch = Vec::new();
    while queue.blocking_recv_many(&mut batch, QUEUE) > 0 {
        let mut run = Run::default();
        for write in batch.drain(..) {
            match write {
                Write::Record(log, record) => run.add(log, record),
                Write::Sync { done, last } => {
                    run.finish();
                    if last {
                        return Some(done);
                    }
                    let _ = done.send(());
                }
            }
        }
        run.finish();
    }
    None
}

/// Consecutive records of one log.
#[derive(Default)]
struct Run {
    log: Option<Arc<InstanceLog>>,
    records: Vec<Arc<Record>>,
}

impl Run {
    fn add(&mut self, log: Arc<InstanceLog>, record: Arc<Record>) {
        if self.log.as_ref().is_none_or(|of| !Arc::ptr_eq(of, &log)) {
            self.finish();
            self.log = Some(log);
        }
        self.records.push(record);
    }

    fn finish(&mut self) {
        if let Some(log) = self.log.take() {
            log.write(&self.records);
        }
        self.records.clear();
    }
}

#[async_trait]
impl LogSink for LogStore {
    async fn output(&self, id: &InstanceId, vm: &VmId, line: LogLine) {
        // A clock that a guest made up may name no time at all.
        let ts = Timestamp::from_nanosecond(line.time_unix_ns.into()).unwrap_or_else(|_| Timestamp::now());
        let stream = match line.stream {
            OutputStream::Stdout => LogStream::Stdout,
            OutputStream::Stderr => LogStream::Stderr,
        };
        let entry = LogEntry::output(ts, id.clone(), LogSource::Server, stream, line.bytes, line.partial);
        self.append_record(entry, Some(Origin { vm: vm.clone(), seq: line.seq })).await;
    }

    async fn system(&self, id: &InstanceId, message: SystemMessage) {
        let (stream, line) = match message {
            SystemMessage::Info(line) => (LogStream::Stdout, line),
            SystemMessage::Error(line) => (LogStream::Stderr, line),
        };
        self.append(LogEntry::system(Timestamp::now(), id.clone(), stream, line)).await;
    }

    async fn ended(&self, id: &InstanceId) {
        if let Some(log) = self.get(id) {
            self.append_held(&log, None).await;
        }
    }

    async fn last_seq(&self, id: &InstanceId, vm: &VmId) -> u64 {
        let Some(log) = self.get(id) else { return 0 };
        let vm = vm.clone();
        task::spawn_blocking(move || log.last_seq(&vm)).await.expect("reading does not panic")
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
