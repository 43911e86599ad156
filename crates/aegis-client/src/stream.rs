//! NDJSON answers, object by object.

use aegis_api::{ExecDone, ExecStarted, LogEntry, PullEvent};
use aegis_types::NetEvent;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::ClientError;
use crate::connection::Answer;

/// A log line has at most 64 KiB, which JSON escapes and the base64 form make at most eight times as long.
const LINE_MAX: usize = 1 << 20;

/// Lines of a body. Reading is cancel safe: nothing is lost when a future of [`Lines::next`] is dropped.
struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// So many bytes at the front of the buffer hold no newline.
    searched: usize,
    _driver: JoinSet<()>,
}

impl Lines {
    fn new(answer: Answer) -> Self {
        let (body, driver) = answer.into_stream();
        Self { body, buffer: BytesMut::new(), searched: 0, _driver: driver }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|&b| b == b'\n') {
                let line = self.buffer.split_to(self.searched + at + 1).freeze();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_MAX {
                return Err(ClientError::Protocol(format!("a line is longer than {LINE_MAX} bytes")));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.map_err(ClientError::Lost)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(ClientError::Protocol("it ends inside a line".into())),
            }
        }
    }
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(line).map_err(|e| ClientError::Protocol(e.to_string()))
}

/// Entries of a log.
pub struct LogEntries(Lines);

impl LogEntries {
    pub(crate) fn new(answer: Answer) -> Self {
        Self(Lines::new(answer))
    }

    /// The next entry; none at the end of the log, or, when following, after the instance was deleted.
    /// Cancel safe.
    ///
    /// # Errors
    /// The connection broke or an entry makes no sense.
    pub async fn next(&mut self) -> Result<Option<LogEntry>, ClientError> {
        self.0.next().await?.map(|line| parse(&line)).transpose()
    }
}

/// Decisions about what an instance wanted to reach.
pub struct NetEvents(Lines);

impl NetEvents {
    pub(crate) fn new(answer: Answer) -> Self {
        Self(Lines::new(answer))
    }

    /// The next one; none at the end of the log, or, when following, after the instance was deleted. Cancel safe.
    ///
    /// # Errors
    /// The connection broke or an event makes no sense.
    pub async fn next(&mut self) -> Result<Option<NetEvent>, ClientError> {
        self.0.next().await?.map(|line| parse(&line)).transpose()
    }
}

/// How a pull goes.
pub struct PullEvents(Lines);

impl PullEvents {
    pub(crate) fn new(answer: Answer) -> Self {
        Self(Lines::new(answer))
    }

    /// The next event; [`PullEvent::Ready`] and [`PullEvent::Failed`] are the last. Cancel safe.
    ///
    /// # Errors
    /// The connection broke, an event makes no sense, or the stream ended before the pull.
    pub async fn next(&mut self) -> Result<PullEvent, ClientError> {
        match self.0.next().await? {
            Some(line) => parse(&line),
            None => Err(ClientError::Protocol("the stream ends before the pull does".into())),
        }
    }
}

/// Something that happened to an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It was started. Always first.
    Started(ExecStarted),
    /// Output.
    Entry(LogEntry),
    /// It ended. Always last.
    Done(ExecDone),
}

/// Events of an exec.
pub struct ExecEvents {
    lines: Lines,
    started: bool,
    done: bool,
}

impl ExecEvents {
    pub(crate) fn new(answer: Answer) -> Self {
        Self { lines: Lines::new(answer), started: false, done: false }
    }

    /// The next event; none after [`ExecEvent::Done`]. Cancel safe.
    ///
    /// # Errors
    /// The connection broke, an event makes no sense, or the stream ended before the command.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, ClientError> {
        if self.done {
            return Ok(None);
        }
        let Some(line) = self.lines.next().await? else {
            return Err(ClientError::Protocol("the stream ends before the command does".into()));
        };
        if !self.started {
            self.started = true;
            return parse(&line).map(|started| Some(ExecEvent::Started(started)));
        }
        // The end lacks what every entry has, so that it is told apart without parsing output twice.
        if let Ok(entry) = serde_json::from_slice(&line) {
            return Ok(Some(ExecEvent::Entry(entry)));
        }
        self.done = true;
        parse(&line).map(|done| Some(ExecEvent::Done(done)))
    }
}
