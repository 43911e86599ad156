//! One line of a log with what the store needs to know about it, and its form in the file.

use aegis_api::LogEntry;
use aegis_types::VmId;
use serde::Deserialize;

/// Memory of a record besides its texts, roughly.
const OVERHEAD_BYTES: usize = 100;

/// A numbered entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Counts up by one per instance and over restarts of the daemon.
    pub(super) n: u64,
    /// Which line of which boot it is, for output of the primary process.
    pub(super) origin: Option<Origin>,
    /// What readers see.
    pub(super) entry: LogEntry,
}

/// A line as the guest numbered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) vm: VmId,
    pub(super) seq: u64,
}

/// The part of a record in the file that is not the entry. The entry's own fields stand beside it.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    pub(super) n: u64,
    vm: Option<VmId>,
    seq: Option<u64>,
}

impl Head {
    pub(super) fn parse(line: &[u8]) -> Option<Head> {
        serde_json::from_slice(line).ok()
    }

    pub(super) fn into_origin(self) -> Option<Origin> {
        Some(Origin { vm: self.vm?, seq: self.seq? })
    }
}

impl Record {
    /// Bytes that the record counts for in the buffer.
    pub(super) fn cost(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.entry.line.len() + optional(&self.entry.raw) + optional(&self.entry.exec_id) + OVERHEAD_BYTES
    }

    /// Appends the record as a line: the entry's JSON object with our fields added at its end.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(&mut *out, &self.entry).expect("entries serialise");
        assert_eq!(out.pop(), Some(b'}'), "an entry is an object");
        out.extend_from_slice(format!(",\"n\":{}", self.n).as_bytes());
        if let Some(Origin { vm, seq }) = &self.origin {
            out.extend_from_slice(format!(",\"vm\":\"{vm}\",\"seq\":{seq}").as_bytes());
        }
        out.extend_from_slice(b"}\n");
    }

    /// Reads a line of the file; `None` for one that is damaged.
    pub(super) fn parse(line: &[u8]) -> Option<Record> {
        let head = Head::parse(line)?;
        let entry = serde_json::from_slice(line).ok()?;
        Some(Record { n: head.n, origin: head.into_origin(), entry })
    }
}

#[cfg(test)]
mod tests {
    use aegis_api::{LogSource, LogStream};
    use aegis_types::InstanceId;
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn records_survive_the_file() {
        let id = InstanceId::from_unix_nanos(1);
        let entry = |bytes: &[u8]| {
            let now = Timestamp::UNIX_EPOCH;
            LogEntry::output(now, id.clone(), LogSource::Server, LogStream::Stderr, bytes.to_vec(), true)
        };
        for (origin, bytes) in
            [(None, &b"}\"\n"[..]), (Some(Origin { vm: VmId::from_random(7), seq: 9 }), b"\xff\x00")]
        {
            let record = Record { n: 3, origin, entry: entry(bytes) };
            let mut line = Vec::new();
            record.encode(&mut line);
            assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
            assert_eq!(Record::parse(&line), Some(record));
        }
        assert_eq!(Record::parse(b"{\"n\":1}"), None);
    }
}
