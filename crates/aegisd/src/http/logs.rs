//! Logs and consoles.

use std::collections::VecDeque;
use std::io::ErrorKind;

use aegis_api::LogEntry;
use aegis_lifecycle::InUse;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::task;
use utoipa::IntoParams;

use super::error::{ApiError, denied, label, not_found};
use super::extract::{Params, Target};
use super::{Shared, ndjson, write_line};
use crate::launcher::{files, kept_console, live_console};
use crate::logs::Reader;
use crate::text::printable;

/// Newest part of a console that is shown, in bytes.
const CONSOLE_MAX: u64 = 1 << 20;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogParams {
    /// `1`: it goes on until the client leaves.
    follow: Option<String>,
    /// `1`: the instance is not idle while the answer is read.
    attach: Option<String>,
    /// Only entries after this time, in RFC 3339.
    since: Option<String>,
    /// Only so many of the newest entries that there are at first.
    tail: Option<String>,
    /// Only entries of this exec.
    exec_id: Option<String>,
}

/// The log of an instance.
#[utoipa::path(
    get,
    path = "/v1/instances/{target}/logs",
    params(LogParams),
    responses((
        status = 200,
        description = "One entry a line",
        body = LogEntry,
        content_type = "application/x-ndjson"
    ))
)]
pub(super) async fn logs(
    State(app): State<Shared>,
    Target(instance): Target,
    Params(params): Params<LogParams>,
) -> Result<Response, ApiError> {
    let query = Query::parse(params)?;
    let reader = app.logs.read(&instance.spec().id).ok_or_else(|| not_found(label(&instance)))?;
    let in_use = match query.attach {
        true => Some(instance.attach().await.map_err(|e| denied("follow", &instance, e))?),
        false => None,
    };
    let answer = LogAnswer { reader, query, _in_use: in_use };
    Ok(ndjson(stream::unfold(answer, |mut answer| async {
        answer.next().await.map(|bytes| (bytes, answer))
    })))
}

/// What of a log is wanted.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    follow: bool,
    /// The instance is in use while the answer is read.
    attach: bool,
    /// Only entries after this time.
    since: Option<Timestamp>,
    /// Only the newest of what is there at first. Taken when it was applied.
    tail: Option<usize>,
    exec_id: Option<String>,
}

impl Query {
    fn parse(params: LogParams) -> Result<Self, ApiError> {
        let follow = flag("follow", params.follow.as_deref())?;
        let attach = flag("attach", params.attach.as_deref())?;
        let since = match params.since.as_deref() {
            None | Some("") => None,
            Some(text) => Some(
                text.parse()
                    .map_err(|_| ApiError::invalid("`since` must be a time like `2026-01-31T12:00:00Z`"))?,
            ),
        };
        let tail = match params.tail.as_deref() {
            None | Some("") => None,
            Some(text) => {
                Some(text.parse().map_err(|_| ApiError::invalid("`tail` must be a number of lines"))?)
            }
        };
        Ok(Self { follow, attach, since, tail, exec_id: params.exec_id.filter(|id| !id.is_empty()) })
    }

    fn wants(&self, entry: &LogEntry) -> bool {
        self.since.is_none_or(|since| entry.ts > since)
            && self.exec_id.as_ref().is_none_or(|id| entry.exec_id.as_ref() == Some(id))
    }
}

struct LogAnswer {
    reader: Reader,
    query: Query,
    /// Ends with the answer.
    _in_use: Option<InUse>,
}

pub(super) fn flag(name: &str, text: Option<&str>) -> Result<bool, ApiError> {
    match text {
        None | Some("" | "0" | "false") => Ok(false),
        Some("1" | "true") => Ok(true),
        Some(_) => Err(ApiError::invalid(format!("`{name}` must be 1 or 0"))),
    }
}

impl LogAnswer {
    /// The next piece of the answer; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(tail) = self.query.tail.take() {
            let newest = self.newest(tail).await;
            if !newest.is_empty() {
                return Some(encode(newest.iter()));
            }
        }
        loop {
            let entries = self.reader.read().await;
            if entries.is_empty() && !(self.query.follow && self.reader.wait().await) {
                return None;
            }
            let bytes = encode(entries.iter().filter(|entry| self.query.wants(entry)));
            if !bytes.is_empty() {
                return Some(bytes);
            }
        }
    }

    /// The last `count` of the entries that there are now.
    async fn newest(&mut self, count: usize) -> VecDeque<LogEntry> {
        let mut newest = VecDeque::new();
        loop {
            let entries = self.reader.read().await;
            if entries.is_empty() {
                return newest;
            }
            for entry in entries.into_iter().filter(|entry| self.query.wants(entry)) {
                newest.push_back(entry);
                if newest.len() > count {
                    newest.pop_front();
                }
            }
        }
    }
}

fn encode<'a>(entries: impl Iterator<Item = &'a LogEntry>) -> Bytes {
    let mut bytes = Vec::new();
    entries.for_each(|entry| write_line(&mut bytes, entry));
    bytes.into()
}

/// The console of the live VM, else of the last one; empty if there is none. The guest wrote it, so control characters
/// are taken out.
#[utoipa::path(
    get,
    path = "/v1/instances/{target}/console",
    responses((status = 200, body = String, content_type = "text/plain"))
)]
pub(super) async fn console(
    State(app): State<Shared>,
    Target(instance): Target,
) -> Result<Response, ApiError> {
    let id = &instance.spec().id;
    let paths = [live_console(&app.home, id), kept_console(&app.home, id)];
    let read = task::spawn_blocking(move || {
        for path in paths {
            match files::read_end(&path, CONSOLE_MAX) {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                read => return read,
            }
        }
        Ok(Vec::new())
    });
    let bytes = read.await.expect("reading a file does not panic");
    let text = printable(&bytes.map_err(|e| ApiError::internal("cannot read the console", &e))?);
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(follow: &str, since: &str, tail: &str) -> Option<Query> {
        let some = |text: &str| Some(text.to_owned());
        let params = LogParams {
            follow: some(follow),
            attach: None,
            since: some(since),
            tail: some(tail),
            exec_id: None,
        };
        Query::parse(params).ok()
    }

    #[test]
    fn queries_are_checked() {
        let query = Query {
            follow: true,
            attach: false,
            since: Some(Timestamp::UNIX_EPOCH),
            tail: Some(5),
            exec_id: None,
        };
        assert_eq!(parse("true", "1970-01-01T00:00:00Z", "5"), Some(query));
        assert_eq!(
            parse("", "", ""),
            Some(Query { follow: false, attach: false, since: None, tail: None, exec_id: None })
        );
        assert!(
            parse("yes", "", "").is_none() && parse("", "now", "").is_none() && parse("", "", "-1").is_none()
        );
    }
}
