//! Reading a log from its beginning to its end, wherever the records are.

use std::sync::Arc;

use aegis_api::{LogEntry, LogStream};
use aegis_types::InstanceId;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task;

use super::file::Chain;
use super::instance::{InstanceLog, Taken};
use super::record::Record;

/// A place in a log. Reading never holds anybody up; a reader that falls behind the buffer goes on in the files, and
/// one that falls behind the files too is told how much it missed.
#[derive(Debug)]
pub(crate) struct Reader {
    id: InstanceId,
    log: Arc<InstanceLog>,
    changed: watch::Receiver<()>,
    next: u64,
    /// Something was read, so that a jump is a loss and not the beginning of the log.
    begun: bool,
    chain: Option<Chain>,
}

impl Reader {
    /// A reader at the oldest record that there is.
    pub(super) fn new(id: InstanceId, log: Arc<InstanceLog>) -> Self {
        let changed = log.subscribe();
        Self { id, log, changed, next: 0, begun: false, chain: None }
    }

    /// The next entries; empty when the reader has all that there is.
    pub(crate) async fn read(&mut self) -> Vec<LogEntry> {
        loop {
            let front = match self.log.take(self.next) {
                Taken::CaughtUp => return Vec::new(),
                Taken::Batch(records) => {
                    self.chain = None;
                    return self.deliver(&records);
                }
                Taken::Evicted { front } => front,
            };
            let fresh = self.chain.is_none();
            let records = self.read_files().await;
            if !records.is_empty() {
                return self.deliver(&records);
            }
            // A view that was opened after the eviction shows everything that the file could take.
            if fresh {
                let missed = self.missed(front);
                self.next = front;
                if let Some(entry) = missed {
                    return vec![entry];
                }
            }
        }
    }

    /// Waits for more after [`Reader::read`] gave nothing. `false`: the log is over.
    pub(crate) async fn wait(&mut self) -> bool {
        loop {
            // Marked as seen before looking, so that what happens in between is not slept through.
            self.changed.borrow_and_update();
            if self.log.has(self.next) {
                return true;
            }
            if self.log.is_over() || self.changed.changed().await.is_err() {
                return false;
            }
        }
    }

    async fn read_files(&mut self) -> Vec<Arc<Record>> {
        let (log, next, chain) = (Arc::clone(&self.log), self.next, self.chain.take());
        let read = task::spawn_blocking(move || {
            let mut chain = match chain {
                Some(chain) => chain,
                None => log.read_files()?,
            };
            let records = chain.batch(next)?;
            // At its end the view is of no more use.
            Ok::<_, std::io::Error>((!records.is_empty()).then_some((records, chain)))
        });
        match read.await.expect("reading does not panic") {
            Ok(Some((records, chain))) => {
                self.chain = Some(chain);
                records
            }
            Ok(None) => Vec::new(),
            Err(error) => {
                tracing::warn!(%error, "cannot read a log file");
                Vec::new()
            }
        }
    }

    fn deliver(&mut self, records: &[Arc<Record>]) -> Vec<LogEntry> {
        let mut entries = Vec::with_capacity(records.len());
        for record in records {
            entries.extend(self.missed(record.n));
            entries.push(record.entry.clone());
            self.next = record.n + 1;
            self.begun = true;
        }
        entries
    }

    fn missed(&self, n: u64) -> Option<LogEntry> {
        let count = n.saturating_sub(self.next);
        (self.begun && count > 0).then(|| {
            let line =
                format!("{count} log lines are missing here: they were dropped before they could be read");
            LogEntry::system(Timestamp::now(), self.id.clone(), LogStream::Stderr, line)
        })
    }
}
