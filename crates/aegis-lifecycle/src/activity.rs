//! Learns from the guest that it works by itself.

use std::time::Duration;

use aegis_link::frames::FrameReader;
use aegis_proto::activity::{Activity, INTERVAL};
use aegis_proto::service::Service;
use tokio::time::{sleep, timeout};

use crate::effects::report;
use crate::ports::Worker;
use crate::session::{OPEN_TIMEOUT, Session};
use crate::step::Event;

/// Streams that brought nothing in a row before the guest is left alone: an old harness offers no such service.
const FAILURES_MAX: u32 = 5;
/// Before the first stream, and after one that broke: nobody is idle so soon, and a start has better things to do.
const PAUSE: Duration = Duration::from_secs(2);

/// Reports activity for ever; without a guest that tells, does nothing for ever.
pub(crate) async fn follow(session: &Session, worker: &dyn Worker) {
    let mut status = session.status.clone();
    let mut failures = 0;
    while failures < FAILURES_MAX {
        sleep(PAUSE).await;
        if status.wait_for(|status| status.reachable).await.is_err() {
            break;
        }
        failures = if read(session, worker).await { 0 } else { failures + 1 };
    }
    std::future::pending().await
}

/// Reads one stream to its end; true if it brought anything or lasted for long.
async fn read(session: &Session, worker: &dyn Worker) -> bool {
    let Ok(Ok(stream)) = timeout(OPEN_TIMEOUT, worker.open(Service::Activity)).await else { return false };
    let opened = tokio::time::Instant::now();
    let mut frames = FrameReader::new(stream);
    while let Ok(Some(frame)) = frames.next().await {
        match Activity::from_frame(&frame) {
            Ok(activity) if activity.counts() => {
                report(&session.reports, Event::Activity { vm: session.vm.clone() }).await;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "the guest's signs of life make no sense");
                return false;
            }
        }
    }
    opened.elapsed() > INTERVAL
}
