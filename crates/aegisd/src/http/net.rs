//! What instances may reach, and what they tried to.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use aegis_api::{NetRuleRequest, NetStatus};
use aegis_net::{LOG_FILE, OLD_LOG_FILE};
use aegis_types::NetEvent;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use serde::Deserialize;
use tokio::task;
use utoipa::IntoParams;

use super::error::ApiError;
use super::extract::{Json, Params, Target};
use super::instances::Answer;
use super::logs::flag;
use super::{Shared, ndjson, write_line};
use crate::networks::{NetError, log_dir};

/// How often a log that is followed is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What an instance may reach.
#[utoipa::path(get, path = "/v1/instances/{target}/net", responses((status = 200, body = NetStatus)))]
pub(super) async fn show(State(app): State<Shared>, Target(instance): Target) -> Answer<NetStatus> {
    let (networks, id) = (app.networks.clone(), instance.spec().id.clone());
    let loaded =
        task::spawn_blocking(move || networks.load(&id)).await.expect("reading a file does not panic");
    Ok(axum::Json(loaded.map_err(|e| ApiError::internal("cannot read the network policy", &e))?))
}

/// Adds a rule to the network policy, or moves it to the other side.
#[utoipa::path(
    post,
    path = "/v1/instances/{target}/net/rules",
    request_body = NetRuleRequest,
    responses((status = 200, body = NetStatus))
)]
pub(super) async fn add_rule(
    State(app): State<Shared>,
    Target(instance): Target,
    Json(request): Json<NetRuleRequest>,
) -> Answer<NetStatus> {
    let added = app.networks.add_rule(&instance.spec().id, request.allow, request.rule).await;
    let added = added.map_err(|error| match error {
        NetError::Policy(e) => ApiError::invalid(e.to_string()),
        e => ApiError::internal("cannot change the network policy", &e),
    });
    Ok(axum::Json(added?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogParams {
    /// `1`: it goes on until the client leaves.
    follow: Option<String>,
    /// `1`: only what was denied.
    denied: Option<String>,
}

/// What an instance tried to reach, and what was decided.
#[utoipa::path(
    get,
    path = "/v1/instances/{target}/net/log",
    params(LogParams),
    responses((
        status = 200,
        description = "One event a line",
        body = NetEvent,
        content_type = "application/x-ndjson"
    ))
)]
pub(super) async fn log(
    State(app): State<Shared>,
    Target(instance): Target,
    Params(params): Params<LogParams>,
) -> Result<Response, ApiError> {
    let follow = flag("follow", params.follow.as_deref())?;
    let denied = flag("denied", params.denied.as_deref())?;
    let log = Log { directory: log_dir(&app.home, &instance.spec().id), file: None, begun: false };
    let status = instance.watch();
    let answer = (log, status, false);
    Ok(ndjson(stream::unfold(answer, move |(mut log, status, mut last)| async move {
        loop {
            let read = task::spawn_blocking(move || {
                let lines = log.read();
                (log, lines)
            });
            let lines;
            (log, lines) = read.await.expect("reading a file does not panic");
            let bytes = encode(&lines.unwrap_or_default(), denied);
            if !bytes.is_empty() {
                return Some((bytes, (log, status, last)));
            }
            if !follow || last {
                return None;
            }
            // What was written before the end is read once more.
            last = status.has_changed().is_err() || status.borrow().deleted;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })))
}

/// The events of whole lines. The worker wrote them, so a line that makes no sense is left out.
fn encode(lines: &[u8], denied: bool) -> Bytes {
    let events =
        lines.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice::<NetEvent>(line).ok());
    let mut bytes = Vec::new();
    events.filter(|event| !(denied && event.allowed)).for_each(|event| write_line(&mut bytes, &event));
    bytes.into()
}

/// A log that is read from the older of its two files to the end of the newer one, and from there on.
struct Log {
    directory: PathBuf,
    file: Option<File>,
    begun: bool,
}

impl Log {
    /// What was written since the last call, as whole lines.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut lines = Vec::new();
        if !std::mem::replace(&mut self.begun, true)
            && let Ok(mut old) = File::open(self.directory.join(OLD_LOG_FILE))
        {
            old.read_to_end(&mut lines)?;
        }
        loop {
            let file = match &mut self.file {
                Some(file) => file,
                closed => match File::open(self.directory.join(LOG_FILE)) {
                    Ok(file) => closed.insert(file),
                    Err(e) if e.kind() == ErrorKind::NotFound => return Ok(lines),
                    Err(e) => return Err(e),
                },
            };
            let before = lines.len();
            file.read_to_end(&mut lines)?;
            // A line that is being written is read the next time.
            let whole = lines[before..].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
            let rest = lines.len() - before - whole;
            lines.truncate(before + whole);
            file.seek(SeekFrom::Current(-i64::try_from(rest).unwrap_or(0)))?;
            if lines.len() > before || !self.is_replaced()? {
                return Ok(lines);
            }
            self.file = None;
        }
    }

    /// Whether another file has the name by now.
    fn is_replaced(&self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt as _;
        let Some(file) = &self.file else { return Ok(false) };
        match std::fs::metadata(self.directory.join(LOG_FILE)) {
            Ok(current) => Ok(current.ino() != file.metadata()?.ino()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::fs;
    use std::io::Write as _;

    #[test]
    fn a_log_is_read_on_over_the_change_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let (new, old) = (dir.path().join(LOG_FILE), dir.path().join(OLD_LOG_FILE));
        let mut log = Log { directory: dir.path().to_owned(), file: None, begun: false };
        assert_eq!(log.read().unwrap(), b"");
        log.begun = false;
        fs::write(&old, "0\n").unwrap();
        fs::write(&new, "1\n2").unwrap();
        assert_eq!(log.read().unwrap(), b"0\n1\n");
        fs::OpenOptions::new().append(true).open(&new).unwrap().write_all(b"2\n3\n").unwrap();
        assert_eq!(log.read().unwrap(), b"22\n3\n");
        fs::rename(&new, &old).unwrap();
        assert_eq!(log.read().unwrap(), b"");
        fs::write(&new, "4\n").unwrap();
        assert_eq!(log.read().unwrap(), b"4\n");
        assert_eq!(log.read().unwrap(), b"");
    }

    #[test]
    fn what_is_no_event_is_left_out() {
        let lines = concat!(
            "garbage\n",
            r#"{"ts":"2026-01-31T12:00:00Z","allowed":true,"protocol":"tcp","destination":"1.1.1.1:443"}"#,
            "\n",
            r#"{"ts":"2026-01-31T12:00:00Z","allowed":false,"protocol":"tcp","destination":"10.0.0.1:1","reason":"x"}"#,
            "\n"
        );
        assert_eq!(encode(lines.as_bytes(), false).iter().filter(|&&b| b == b'\n').count(), 2);
        let denied = encode(lines.as_bytes(), true);
        assert!(!denied.is_empty() && !denied.windows(7).any(|part| part == b"1.1.1.1"));
    }
}
