//! A copy of files of a guest, from the caller's side.
//!
//! The bytes go straight between the caller and the guest: who is slow holds the other back. The guest is hostile: what it
//! sends is a stream that the caller does not trust, and a report whose texts are bounded here.

use std::time::Duration;

use aegis_link::Carrier;
use aegis_link::frames::{FrameReader, FramesError, write_frame};
use aegis_proto::files::{Answer, DATA_MAX, Piece, Request};
use aegis_types::{CopyReport, FileStat, PROBLEMS_MAX};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::driver::Grant;
use crate::error::{CopyError, ExecLost};
use crate::guest_frames::{next_frame, violation};
use crate::ports::WorkerError;
use crate::text;

/// Time for the guest to look at the path. Other copies may be before this one.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// A copy in progress. It counts as activity until it is dropped, which ends it.
pub struct Copying {
    /// What was found at the path.
    pub stat: FileStat,
    /// Guest to host.
    pub from_guest: FromGuest,
    /// Host to guest.
    pub to_guest: ToGuest,
}

impl Copying {
    /// Asks on this stream.
    pub(crate) async fn open(
        grant: Grant,
        stream: Box<dyn Carrier>,
        request: Request,
    ) -> Result<Self, CopyError> {
        let frame = request.into_frame();
        let (reader, mut writer) = tokio::io::split(stream);
        let mut frames = FrameReader::new(reader);
        let ask = async {
            write_frame(&mut writer, &frame).await?;
            let answer = frames.next().await?;
            let ended = || FramesError::Io(std::io::ErrorKind::UnexpectedEof.into());
            Ok::<_, FramesError>(Answer::from_frame(&answer.ok_or_else(ended)?)?)
        };
        let answer = timeout(OPEN_TIMEOUT, ask).await.map_err(|_| {
            WorkerError(format!("the guest did not answer within {} s", OPEN_TIMEOUT.as_secs()))
        })?;
        match answer.map_err(|e| WorkerError(text::chain(&e)))? {
            Answer::Found { stat } => Ok(Self {
                stat,
                from_guest: FromGuest { frames, ended: false, in_flight: Some(grant.in_flight) },
                to_guest: ToGuest { writer },
            }),
            Answer::Refused { not_found, message } => {
                Err(CopyError::Refused { not_found, message: text::bounded(&message) })
            }
        }
    }
}

/// What the guest sends.
pub struct FromGuest {
    frames: FrameReader<ReadHalf<Box<dyn Carrier>>>,
    ended: bool,
    /// Dropping it tells the driver that the copy is over, sending on it that the guest broke the rules.
    in_flight: Option<oneshot::Sender<String>>,
}

/// A piece of what the guest sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilePiece {
    /// Bytes of the tar stream.
    Data(Vec<u8>),
    /// What came of the copy. Always last.
    Report(CopyReport),
}

impl FromGuest {
    /// The next piece; `None` after the report. Cancel-safe.
    ///
    /// # Errors
    /// See [`ExecLost`].
    pub async fn next(&mut self) -> Option<Result<FilePiece, ExecLost>> {
        if self.ended {
            return None;
        }
        let result = self.read().await;
        if let Err(ExecLost::Violation(fault)) = &result
            && let Some(in_flight) = self.in_flight.take()
        {
            // A driver that is gone has no VM left to stop.
            let _ = in_flight.send(format!("stream of files: {fault}"));
        }
        self.ended = !matches!(result, Ok(FilePiece::Data(_)));
        Some(result)
    }

    async fn read(&mut self) -> Result<FilePiece, ExecLost> {
        let frame = next_frame(&mut self.frames).await?;
        match Piece::from_frame(frame).map_err(|e| violation(&e))? {
            Piece::Data(bytes) => Ok(FilePiece::Data(bytes)),
            Piece::Report(report) => Ok(FilePiece::Report(bounded(report))),
            Piece::End => Err(ExecLost::Violation("an end that belongs to the host".to_owned())),
        }
    }
}

/// The guest wrote it.
fn bounded(mut report: CopyReport) -> CopyReport {
    report.problems.truncate(PROBLEMS_MAX);
    for problem in &mut report.problems {
        problem.path = text::bounded(&problem.path);
        problem.error = text::bounded(&problem.error);
    }
    report.failure = report.failure.map(|failure| text::bounded(&failure));
    report
}

/// What the guest is sent.
pub struct ToGuest {
    writer: WriteHalf<Box<dyn Carrier>>,
}

impl ToGuest {
    /// Sends bytes of the tar stream; waits while the guest does not take them.
    ///
    /// # Errors
    /// The guest takes no more; what it sends tells why.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), ExecLost> {
        for piece in bytes.chunks(DATA_MAX) {
            self.write(Piece::Data(piece.to_vec())).await?;
        }
        Ok(())
    }

    /// Tells the guest that this was all. Without it the guest takes the stream for cut off.
    ///
    /// # Errors
    /// As for [`ToGuest::send`].
    pub async fn finish(&mut self) -> Result<(), ExecLost> {
        self.write(Piece::End).await
    }

    async fn write(&mut self, piece: Piece) -> Result<(), ExecLost> {
        let written = write_frame(&mut self.writer, &piece.into_frame()).await;
        written.map_err(|e| ExecLost::Ended(text::chain(&e)))
    }
}
