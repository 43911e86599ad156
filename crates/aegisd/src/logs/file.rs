//! The files of one instance's log. Everything here blocks.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegis_types::{InstanceId, VmId};

use super::record::{Head, Origin, Record};
use crate::rotate::Rotation;

/// Read from the end of the file at start, in bytes. More than the largest record, whose 64 KiB may be escaped
/// sixfold and be repeated as base64.
const TAIL: u64 = 1 << 20;
/// Ends a batch of a [`Chain`], whichever comes first.
const BATCH_RECORDS: usize = 256;
const BATCH_BYTES: usize = 256 << 10;

const SUFFIX: &str = ".ndjson";
/// Ends the name of the console of an instance's last VM, which the launcher keeps beside the logs.
pub(crate) const CONSOLE_SUFFIX: &str = ".console.log";

/// Where the files of a log are, and how large the current one is. Whoever writes, rotates or opens them for
/// reading holds it exclusively; that makes the open files a consistent view.
#[derive(Debug)]
pub(super) struct LogFiles {
    current: PathBuf,
    rotation: Rotation,
    size: u64,
    failing: bool,
    removed: bool,
}

/// The instance whose file this is.
pub(super) fn owner(file_name: &str) -> Option<InstanceId> {
    let current = match file_name.rsplit_once('.') {
        // An older one, however many are kept now.
        Some((current, number)) if number.parse::<u32>().is_ok() => current,
        _ => file_name,
    };
    let id = [SUFFIX, CONSOLE_SUFFIX].into_iter().find_map(|suffix| current.strip_suffix(suffix))?;
    InstanceId::parse(id).ok()
}

impl LogFiles {
    pub(super) fn new(dir: &Path, id: &InstanceId, rotation: Rotation) -> Self {
        Self { current: dir.join(format!("{id}{SUFFIX}")), rotation, size: 0, failing: false, removed: false }
    }

    /// Creates the file or continues it after its last complete record. Returns the newest record's head.
    pub(super) fn open(&mut self) -> io::Result<Option<Head>> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.current)?;
        let (complete, newest) = tail(&file)?;
        if complete < file.metadata()?.len() {
            // A crash in the middle of a record.
            file.set_len(complete)?;
        }
        self.size = complete;
        match newest {
            Some(head) => Ok(Some(head)),
            None => match self.rotation.older(&self.current).next().map(File::open) {
                Some(Ok(file)) => Ok(tail(&file)?.1),
                Some(Err(e)) if e.kind() != ErrorKind::NotFound => Err(e),
                _ => Ok(None),
            },
        }
    }

    /// Appends the records as one write. A failure is logged once per run of failures and loses these records.
    pub(super) fn append(&mut self, records: &[Arc<Record>]) {
        if self.removed {
            return;
        }
        let mut bytes = Vec::new();
        for record in records {
            record.encode(&mut bytes);
        }
        match self.try_append(&bytes) {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::warn!(%error, file = %self.current.display(), "cannot write a log; going on in memory");
            }
            Err(_) => {}
        }
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let added = bytes.len() as u64;
        if self.size > 0 && self.size + added > self.rotation.bytes_max {
            self.rotation.shift(&self.current)?;
            self.size = 0;
        }
        // Opened anew for each batch: a thousand idle instances hold no descriptors.
        let mut file = File::options().append(true).create(true).mode(0o600).open(&self.current)?;
        if let Err(e) = file.write_all(bytes) {
            // Half a record must not join the next one.
            let _ = file.set_len(self.size);
            return Err(e);
        }
        self.size += added;
        Ok(())
    }

    /// All files from their beginning, the oldest first.
    pub(super) fn read(&self) -> io::Result<Chain> {
        let mut files = VecDeque::new();
        for path in self.rotation.older(&self.current).rev().chain([self.current.clone()]) {
            match File::open(path) {
                Ok(file) => files.push_back(BufReader::new(file)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Chain { files, line: Vec::new() })
    }

    /// Highest sequence number of this VM in the files.
    pub(super) fn last_seq(&self, vm: &VmId) -> io::Result<u64> {
        let mut chain = self.read()?;
        let mut last = 0;
        while let Some(line) = chain.next_line()? {
            if let Some(Origin { vm: of, seq }) = Head::parse(line).and_then(Head::into_origin)
                && of == *vm
            {
                last = last.max(seq);
            }
        }
        Ok(last)
    }

    /// Removes the files. What is appended later does not bring them back.
    pub(super) fn remove(&mut self) -> io::Result<()> {
        self.removed = true;
        for path in self.rotation.older(&self.current).chain([self.current.clone()]) {
            match fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Length up to the end of the last complete line, and the head of the newest readable record near it.
fn tail(mut file: &File) -> io::Result<(u64, Option<Head>)> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    let Some(end) = bytes.iter().rposition(|&b| b == b'\n') else {
        // Without a newline in so many bytes it is no log: keep it and write behind it.
        return Ok((if start == 0 { 0 } else { length }, None));
    };
    let newest = bytes[..end].rsplit(|&b| b == b'\n').find_map(Head::parse);
    Ok((start + end as u64 + 1, newest))
}

/// A consistent view of the files, read once from front to back. Stays valid when the files are rotated.
#[derive(Debug)]
pub(super) struct Chain {
    files: VecDeque<BufReader<File>>,
    line: Vec<u8>,
}

impl Chain {
    fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        while let Some(file) = self.files.front_mut() {
            self.line.clear();
            file.read_until(b'\n', &mut self.line)?;
            // A line without its end is still being written: what comes later is read from a later view.
            if self.line.last() == Some(&b'\n') {
                return Ok(Some(&self.line));
            }
            self.files.pop_front();
        }
        Ok(None)
    }

    /// The next records with at least this number; empty at the end of the view.
    pub(super) fn batch(&mut self, from: u64) -> io::Result<Vec<Arc<Record>>> {
        let mut records = Vec::new();
        let mut bytes = 0;
        while records.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
            let Some(line) = self.next_line()? else { break };
            if Head::parse(line).is_none_or(|head| head.n < from) {
                continue;
            }
            bytes += line.len();
            records.extend(Record::parse(line).map(Arc::new));
        }
        Ok(records)
    }
}
