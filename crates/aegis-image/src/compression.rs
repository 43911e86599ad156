//! How archives are packed, and unpacking them.
//!
//! The first bytes decide, whatever a media type claims: registries label layers wrongly, and what comes out is checked
//! against a digest anyway. Everything is pure Rust, because the input is hostile; docs/design/root-images.md has what that
//! costs.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::FrameDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use serde::{Deserialize, Serialize};

use crate::error::ImageError;

const READ_BUFFER_BYTES: usize = 256 << 10;
/// What `zstd --long` makes by itself, and what the zstd program decompresses without being asked twice. The decoder
/// keeps this much.
const ZSTD_WINDOW_BYTES_MAX: u64 = 128 << 20;

/// How the bytes of a layer are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames, skippable ones among them.
    Zstd,
}

impl Compression {
    /// What the first bytes of an archive say.
    pub(crate) fn of(start: &[u8]) -> Result<Compression, ImageError> {
        match start {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
            // Layers that can be fetched in parts may begin with a skippable frame.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(ImageError::Compressed { format: "xz" }),
            [b'B', b'Z', b'h', ..] => Err(ImageError::Compressed { format: "bzip2" }),
            _ => Ok(Compression::None),
        }
    }
}

/// Looks at the first bytes and unpacks what they announce.
pub(crate) fn decompressed<'r>(
    mut input: Box<dyn Read + 'r>,
) -> Result<(Compression, Box<dyn Read + 'r>), ImageError> {
    let mut start = Vec::new();
    (&mut input).take(6).read_to_end(&mut start).map_err(ImageError::Read)?;
    let compression = Compression::of(&start)?;
    let input = BufReader::with_capacity(READ_BUFFER_BYTES, Cursor::new(start).chain(input));
    let unpacked: Box<dyn Read + 'r> = match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => {
            Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, MultiGzDecoder::new(input)))
        }
        Compression::Zstd => Box::new(BufReader::with_capacity(
            READ_BUFFER_BYTES,
            ZstdFrames::new(input, ZSTD_WINDOW_BYTES_MAX),
        )),
    };
    Ok((compression, unpacked))
}

/// All frames of a zstd stream, one after the other.
struct ZstdFrames<R> {
    input: R,
    frame: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(input: R, window_bytes_max: u64) -> Self {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(window_bytes_max);
        ZstdFrames { input, frame, in_frame: false }
    }

    /// Whether there is another frame with content.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.input.fill_buf()?.is_empty() {
            match self.frame.reset(&mut self.input) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.input).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(zstd_error(error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::BlockDecodingStrategy::UptoBlocks;

        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                self.in_frame = self.next_frame()?;
                if !self.in_frame {
                    return Ok(0);
                }
            }
            while self.frame.can_collect() == 0 && !self.frame.is_finished() {
                self.frame.decode_blocks(&mut self.input, UptoBlocks(1)).map_err(zstd_error)?;
            }
            let count = self.frame.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            let stored = self.frame.get_checksum_from_data();
            if stored.is_some() && stored != self.frame.get_calculated_checksum() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "wrong checksum of a zstd frame"));
            }
            self.in_frame = false;
        }
    }
}

/// A stream that stops within a frame must look like one, as it does for the other formats.
fn zstd_error(error: FrameDecoderError) -> io::Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof) {
            return io::ErrorKind::UnexpectedEof.into();
        }
        source = cause.source();
    }
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::Write as _;

    use super::*;

    fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let (_, mut reader) = decompressed(Box::new(bytes)).map_err(io::Error::other)?;
        reader.read_to_end(&mut out).map(|_| out)
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 3).unwrap()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn members_and_frames_are_joined() {
        let data: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        let (a, b) = data.split_at(123_456);
        assert_eq!(unpack(&[gzip(a), gzip(b)].concat()).unwrap(), data);
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let frames = [&skippable[..], &zstd(a), &skippable, &zstd(b), &skippable].concat();
        assert_eq!(unpack(&frames).unwrap(), data);
        assert_eq!(unpack(&data).unwrap(), data);
        assert!(unpack(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_is_cut_or_damaged_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(&b"some text ".repeat(5000)).unwrap();
        let mut bytes = encoder.finish().unwrap();
        for cut in [bytes.len() - 1, bytes.len() / 2, 5] {
            assert_eq!(unpack(&bytes[..cut]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{cut}");
        }
        *bytes.last_mut().unwrap() ^= 1;
        assert!(unpack(&bytes).unwrap_err().to_string().contains("checksum"));
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 200, 0, 0, 0];
        assert_eq!(unpack(&skippable).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(unpack(&[zstd(b"a"), b"rest".to_vec()].concat()).is_err());
        assert!(unpack(&gzip(&[1; 1000])[..30]).is_err());
    }

    #[test]
    fn a_zstd_window_is_bounded() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(b"small, with a large claim").unwrap();
        let claim = encoder.finish().unwrap();
        let error = unpack(&claim).unwrap_err().to_string();
        assert!(error.contains("window"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn damage_is_an_error_or_other_bytes_and_never_a_panic(
            content in proptest::collection::vec(0..8u8, 0..20_000),
            level in 1..20i32,
            damage in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0..=255u8), 1..6),
        ) {
            let damaged = |mut bytes: Vec<u8>| {
                for (at, value) in &damage {
                    // Not the magic, or nothing would be unpacked.
                    let at = 4 + at.index(bytes.len() - 4);
                    bytes[at] = *value;
                }
                let mut out = Vec::new();
                let (_, reader) = decompressed(Box::new(&bytes[..])).unwrap();
                let _ = reader.take(1 << 20).read_to_end(&mut out);
            };
            damaged(zstd::encode_all(&content[..], level).unwrap());
            damaged(gzip(&content));
        }
    }

    #[test]
    fn formats_that_are_not_read_are_named() {
        assert!(matches!(Compression::of(b"BZh9"), Err(ImageError::Compressed { format: "bzip2" })));
        assert!(matches!(Compression::of(b"\xfd7zXZ\0"), Err(ImageError::Compressed { format: "xz" })));
    }
}
