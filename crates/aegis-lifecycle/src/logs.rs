//! Moves the output of the command from the guest to the log store, and learns from it how the command ended.

use std::time::Duration;

use aegis_link::frames::{FrameReader, FramesError, write_frame};
use aegis_proto::logs::{LogEvent, Subscribe};
use aegis_proto::service::Service;
use aegis_types::{ExitStatus, VmId};
use tokio::time::{sleep, timeout};

use crate::ports::{SystemMessage, Worker};
use crate::session::{OPEN_TIMEOUT, Session};
use crate::step::Event;
use crate::text;

/// Failed streams in a row, none of which brought anything, before the guest is given up.
const FAILURES_MAX: u32 = 6;
/// Pause after the first failure; doubled with each further one.
const BACKOFF: Duration = Duration::from_millis(100);

/// Why a stream is over.
enum Broken {
    /// It may be opened again.
    Stream(String),
    /// The guest broke the rules.
    Rules(String),
}

/// Follows the output to its end. `None` when the VM ended before the command did. Lines are counted from the boot on that the guest's memory goes back to.
pub(crate) async fn follow(session: &Session, boot: &VmId, worker: &dyn Worker) -> Option<Event> {
    let vm = session.vm.clone();
    let mut status = session.status.clone();
    let mut seq = session.logs.last_seq(&session.spec.id, boot).await;
    let mut failures = 0;
    loop {
        // Halted CPUs answer nobody, and those of a VM that is being saved never do again: its worker ends. An error
        // means that the driver is gone.
        tokio::select! {
            reachable = status.wait_for(|status| status.reachable) => drop(reachable.ok()?),
            _ = worker.exited() => return None,
        }
        let before = seq;
        let message = match read(session, boot, worker, &mut seq).await {
            Ok(status) => return Some(Event::ProcessExited { vm, status, ran: None }),
            Err(Broken::Rules(message)) => {
                return Some(Event::GuestFault { vm, message: format!("log stream: {message}") });
            }
            Err(Broken::Stream(message)) => message,
        };
        failures = if seq > before { 1 } else { failures + 1 };
        tracing::debug!(error = %message, failures, "the log stream broke");
        if failures > FAILURES_MAX {
            return Some(Event::GuestFault { vm, message: format!("its output cannot be read: {message}") });
        }
        tokio::select! {
            _ = worker.exited() => return None,
            () = sleep(BACKOFF * 2u32.pow(failures - 1)) => {}
        }
    }
}

/// Reads one stream; `seq` is the last line that is stored.
async fn read(
    session: &Session,
    boot: &VmId,
    worker: &dyn Worker,
    seq: &mut u64,
) -> Result<ExitStatus, Broken> {
    let id = &session.spec.id;
    let open = async {
        let mut stream = worker.open(Service::Logs).await.map_err(|e| Broken::Stream(text::chain(&e)))?;
        write_frame(&mut stream, &Subscribe { after_seq: *seq }.into_frame()).await.map_err(broken)?;
        Ok(stream)
    };
    let opened = timeout(OPEN_TIMEOUT, open).await;
    let stream = opened.map_err(|_| Broken::Stream("it could not be opened in time".to_owned()))??;
    let mut frames = FrameReader::new(stream);
    loop {
        let Some(frame) = frames.next().await.map_err(broken)? else {
            return Err(Broken::Stream("the guest closed it".to_owned()));
        };
        match LogEvent::from_frame(frame).map_err(|e| broken(e.into()))? {
            LogEvent::Line(line) => {
                // Lines that are stored already are not stored again, whatever the guest counts.
                if line.seq > *seq {
                    *seq = line.seq;
                    session.logs.output(id, boot, line).await;
                }
            }
            LogEvent::Dropped { count } => {
                let line = format!("{count} lines of output were lost: the guest's buffer was full");
                session.logs.system(id, SystemMessage::Error(line)).await;
            }
            LogEvent::Exited(status) => {
                session.logs.ended(id).await;
                return Ok(status);
            }
        }
    }
}

fn broken(error: FramesError) -> Broken {
    match error {
        FramesError::Violation(e) => Broken::Rules(text::bounded(&e.to_string())),
        FramesError::Io(_) => Broken::Stream(text::chain(&error)),
    }
}
