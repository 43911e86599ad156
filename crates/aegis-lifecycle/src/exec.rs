//! One process on one stream, from the caller's side.
//!
//! The bytes go straight between the caller and the guest: a slow caller holds the process back. The driver
//! only knows that the session exists.

use std::time::Duration;

use aegis_link::Carrier;
use aegis_link::frames::{FrameReader, FramesError, write_frame};
use aegis_proto::exec::{ExecEvent, ExecRequest};
use aegis_proto::frame::FrameError;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::driver::Grant;
use crate::error::{ExecError, ExecLost};
use crate::guest_frames::{next_frame, violation};
use crate::ports::WorkerError;
use crate::text;

/// Time for the guest to take the request.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A process in a guest. It counts as activity until it is dropped; the process itself goes on then and its
/// output is discarded.
pub struct ExecSession {
    /// Guest to host.
    pub events: ExecEvents,
    /// Host to guest.
    pub input: ExecInput,
}

impl ExecSession {
    /// Asks on this stream.
    pub(crate) async fn open(
        grant: Grant,
        stream: Box<dyn Carrier>,
        request: ExecRequest,
    ) -> Result<Self, ExecError> {
        let frame = request.into_frame();
        let open = async {
            let (reader, mut writer) = tokio::io::split(stream);
            match write_frame(&mut writer, &frame).await {
                Ok(()) => Ok((reader, writer)),
                Err(FramesError::Violation(FrameError::TooLarge { length })) => {
                    Err(ExecError::TooLarge { length })
                }
                Err(e) => Err(WorkerError(text::chain(&e)).into()),
            }
        };
        let (reader, writer) = timeout(OPEN_TIMEOUT, open).await.map_err(|_| {
            WorkerError(format!("the guest did not answer within {} s", OPEN_TIMEOUT.as_secs()))
        })??;
        let events = ExecEvents {
            frames: FrameReader::new(reader),
            expect: Expect::Start,
            in_flight: Some(grant.in_flight),
        };
        Ok(Self { events, input: ExecInput { writer } })
    }

    /// See [`ExecEvents::next`].
    ///
    /// # Errors
    /// See [`ExecLost`].
    pub async fn next(&mut self) -> Option<Result<ExecEvent, ExecLost>> {
        self.events.next().await
    }

    /// See [`ExecInput::send`].
    ///
    /// # Errors
    /// See [`ExecLost`].
    pub async fn send(&mut self, request: ExecRequest) -> Result<(), ExecLost> {
        self.input.send(request).await
    }
}

/// What the process does.
pub struct ExecEvents {
    frames: FrameReader<ReadHalf<Box<dyn Carrier>>>,
    expect: Expect,
    /// Dropping it tells the driver that the session is over, sending on it that the guest broke the rules.
    in_flight: Option<oneshot::Sender<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Start,
    Output,
    Nothing,
}

impl ExecEvents {
    /// The next event; `None` after the last one. The first is [`ExecEvent::Started`] or [`ExecEvent::Refused`],
    /// the last [`ExecEvent::Refused`], [`ExecEvent::Exit`] or an error. Cancel-safe.
    ///
    /// # Errors
    /// See [`ExecLost`].
    pub async fn next(&mut self) -> Option<Result<ExecEvent, ExecLost>> {
        if self.expect == Expect::Nothing {
            return None;
        }
        let result = self.read().await;
        match &result {
            Ok(ExecEvent::Started(_) | ExecEvent::Stdout(_) | ExecEvent::Stderr(_)) => {
                self.expect = Expect::Output
            }
            Ok(ExecEvent::Refused(_) | ExecEvent::Exit(_)) => self.finish(None),
            Err(ExecLost::Ended(_)) => self.finish(None),
            Err(ExecLost::Violation(fault)) => self.finish(Some(format!("exec stream: {fault}"))),
        }
        Some(result)
    }

    async fn read(&mut self) -> Result<ExecEvent, ExecLost> {
        let frame = next_frame(&mut self.frames).await?;
        let event = ExecEvent::from_frame(frame).map_err(|e| violation(&e))?;
        let starts = matches!(event, ExecEvent::Started(_) | ExecEvent::Refused(_));
        if starts == (self.expect == Expect::Start) {
            Ok(event)
        } else {
            Err(ExecLost::Violation("an event out of order".to_owned()))
        }
    }

    fn finish(&mut self, fault: Option<String>) {
        self.expect = Expect::Nothing;
        if let (Some(in_flight), Some(fault)) = (self.in_flight.take(), fault) {
            // A driver that is gone has no VM left to stop.
            let _ = in_flight.send(fault);
        }
    }
}

/// What the process is given.
pub struct ExecInput {
    writer: WriteHalf<Box<dyn Carrier>>,
}

impl ExecInput {
    /// Sends one request; waits while the guest does not read. Not cancel-safe: after a dropped call the input
    /// must not be used any more.
    ///
    /// # Errors
    /// [`ExecLost::Ended`]: the process takes no input any more; its events tell why.
    pub async fn send(&mut self, request: ExecRequest) -> Result<(), ExecLost> {
        write_frame(&mut self.writer, &request.into_frame())
            .await
            .map_err(|e| ExecLost::Ended(text::chain(&e)))
    }
}
