//! Log entries.

use std::borrow::Cow;
use std::fmt;

use aegis_types::InstanceId;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The stream of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// The instance's own command.
    Server,
    /// An exec.
    Exec,
    /// AegisVM itself.
    System,
}

/// One line of an instance's log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// When it was written.
    pub ts: Timestamp,
    /// Stream.
    pub stream: LogStream,
    /// The text without its newline. Bytes that are not UTF-8 are replaced; [`LogEntry::bytes`] has the truth.
    pub line: String,
    /// Who wrote it.
    pub source: LogSource,
    /// Whose log.
    pub instance_id: InstanceId,
    /// Which exec, for [`LogSource::Exec`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<String>,
    /// No newline followed: the line was cut at 64 KiB, or the output ended inside it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// The exact bytes in base64, only when they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<String>,
}

impl LogEntry {
    /// An entry of process output.
    pub fn output(
        ts: Timestamp,
        instance_id: InstanceId,
        source: LogSource,
        stream: LogStream,
        bytes: Vec<u8>,
        partial: bool,
    ) -> Self {
        let (line, raw) = match String::from_utf8(bytes) {
            Ok(line) => (line, None),
            Err(e) => {
                (String::from_utf8_lossy(e.as_bytes()).into_owned(), Some(STANDARD.encode(e.as_bytes())))
            }
        };
        Self { ts, stream, line, source, instance_id, exec_id: None, partial, raw }
    }

    /// A message of AegisVM about the instance.
    pub fn system(
        ts: Timestamp,
        instance_id: InstanceId,
        stream: LogStream,
        line: impl Into<String>,
    ) -> Self {
        let source = LogSource::System;
        Self { ts, stream, line: line.into(), source, instance_id, exec_id: None, partial: false, raw: None }
    }

    /// The exact bytes that the process wrote, newline included where there was one.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        let decoded = self.raw.as_deref().and_then(|raw| STANDARD.decode(raw).ok());
        match (decoded, self.partial) {
            (Some(bytes), true) => Cow::Owned(bytes),
            (None, true) => Cow::Borrowed(self.line.as_bytes()),
            (decoded, false) => {
                let mut bytes = decoded.unwrap_or_else(|| self.line.clone().into_bytes());
                bytes.push(b'\n');
                Cow::Owned(bytes)
            }
        }
    }
}

impl fmt::Debug for LogEntry {
    // Guest output is data: it does not belong in our own log, where a Debug form would end up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogEntry({:?}/{:?}, {} bytes)", self.source, self.stream, self.line.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn entry(bytes: &[u8], partial: bool) -> LogEntry {
        let id = InstanceId::from_unix_nanos(1);
        LogEntry::output(
            Timestamp::UNIX_EPOCH,
            id,
            LogSource::Server,
            LogStream::Stdout,
            bytes.to_vec(),
            partial,
        )
    }

    #[test]
    fn text_is_plain_json() {
        assert_eq!(
            serde_json::to_string(&entry(b"hi", false)).unwrap(),
            r#"{"ts":"1970-01-01T00:00:00Z","stream":"stdout","line":"hi","source":"server","instance_id":"inst-1"}"#
        );
    }

    #[test]
    fn any_bytes_come_back_exactly() {
        for (bytes, partial) in [(&b"hi"[..], false), (b"", true), (b"\xff\x00", true), (b"a\xc3", false)] {
            let json = serde_json::to_string(&entry(bytes, partial)).unwrap();
            let back: LogEntry = serde_json::from_str(&json).unwrap();
            let expected = [bytes, if partial { b"" } else { b"\n" }].concat();
            assert_eq!(back.bytes().as_ref(), expected);
        }
    }
}
