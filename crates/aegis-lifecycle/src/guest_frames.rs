//! Frames of a guest, which is hostile, for those who wait for them.

use aegis_link::frames::{FrameReader, FramesError};
use aegis_proto::frame::{Frame, FrameError};
use tokio::io::AsyncRead;

use crate::error::ExecLost;
use crate::text;

/// The next frame of a stream that must not end yet. Cancel-safe.
///
/// # Errors
/// See [`ExecLost`].
pub(crate) async fn next_frame<R: AsyncRead + Unpin>(frames: &mut FrameReader<R>) -> Result<Frame, ExecLost> {
    match frames.next().await {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => Err(ExecLost::Ended("the guest closed it".to_owned())),
        Err(FramesError::Violation(e)) => Err(violation(&e)),
        Err(e @ FramesError::Io(_)) => Err(ExecLost::Ended(text::chain(&e))),
    }
}

/// A frame that makes no sense.
pub(crate) fn violation(error: &FrameError) -> ExecLost {
    ExecLost::Violation(text::bounded(&error.to_string()))
}
