//! Binary frames: `kind: u8 · length: u32 big-endian · payload`. They carry what must not become JSON:
//! process output and input.

/// Bytes before the payload.
pub const HEADER_LEN: usize = 5;
/// The largest payload. Bulk senders use at most [`CHUNK_MAX`]; the rest is room for structured frames.
pub const PAYLOAD_MAX: usize = 1 << 20;
/// The largest piece of process input or output in one frame, in bytes.
pub const CHUNK_MAX: usize = 64 * 1024;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is; each service defines its own kinds.
    pub kind: u8,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

/// The peer broke the frame rules, or the message is too large to send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A payload above the limit.
    #[error("frame of {length} bytes is larger than {PAYLOAD_MAX}")]
    TooLarge {
        /// Announced length in bytes.
        length: usize,
    },
    /// A kind that the service does not define, or a payload that does not fit it.
    #[error("malformed frame of kind {kind}: {reason}")]
    Malformed {
        /// The kind byte.
        kind: u8,
        /// What is wrong.
        reason: String,
    },
}

impl FrameError {
    /// A [`FrameError::Malformed`].
    pub fn malformed(kind: u8, reason: impl ToString) -> Self {
        Self::Malformed { kind, reason: reason.to_string() }
    }
}

impl Frame {
    /// A frame of these bytes.
    pub fn new(kind: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, payload: payload.into() }
    }

    /// A frame whose payload is a JSON document.
    pub fn json<T: serde::Serialize>(kind: u8, value: &T) -> Self {
        Self { kind, payload: serde_json::to_vec(value).expect("wire types serialise") }
    }

    /// Reads the payload as JSON.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] when it is not the expected document.
    pub fn parse_json<T: serde::de::DeserializeOwned>(&self) -> Result<T, FrameError> {
        serde_json::from_slice(&self.payload).map_err(|e| FrameError::malformed(self.kind, e))
    }

    /// The frame as bytes.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`]: refused at the sender, so that one big message never costs the stream.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let length = self.payload.len();
        if length > PAYLOAD_MAX {
            return Err(FrameError::TooLarge { length });
        }
        let mut bytes = Vec::with_capacity(HEADER_LEN + length);
        bytes.push(self.kind);
        bytes.extend_from_slice(&u32::try_from(length).expect("bounded by PAYLOAD_MAX").to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        Ok(bytes)
    }
}

/// Reassembles frames from received bytes.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    start: usize,
}

impl FrameDecoder {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes of an incomplete frame are waiting: a stream that ends now was cut off.
    pub fn has_partial(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// Takes the next complete frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] as soon as a header announces too much; the stream cannot be used any more.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let pending = &self.buffer[self.start..];
        let Some((header, rest)) = pending.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > PAYLOAD_MAX {
            return Err(FrameError::TooLarge { length });
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = Frame::new(header[0], payload);
        self.start += HEADER_LEN + length;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_chunking(
            frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..10),
            cut in 1usize..64,
        ) {
            let frames: Vec<Frame> = frames.into_iter().map(|(k, p)| Frame::new(k, p)).collect();
            let bytes: Vec<u8> = frames.iter().flat_map(|f| f.encode().unwrap()).collect();
            let mut decoder = FrameDecoder::default();
            let mut got = Vec::new();
            for chunk in bytes.chunks(cut) {
                decoder.push(chunk);
                while let Some(f) = decoder.next_frame().unwrap() { got.push(f) }
            }
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let mut decoder = FrameDecoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn an_oversized_header_is_refused_before_its_payload_arrives() {
        let mut decoder = FrameDecoder::default();
        decoder.push(&[1, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLarge { length: u32::MAX as usize }));
        assert!(Frame::new(0, vec![0; PAYLOAD_MAX + 1]).encode().is_err());
    }
}
