//! One reader for whatever a package, a kernel or a module was compressed with, recognised by its first bytes.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use anyhow::{Result, bail};

const XZ: &[u8] = b"\xfd7zXZ\0";
const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const LZ4_LEGACY: &[u8] = b"\x02\x21\x4c\x18";
const ELF: &[u8] = b"\x7fELF";

/// Largest block of the LZ4 legacy format, decompressed.
const LZ4_BLOCK_BYTES_MAX: usize = 8 << 20;

/// Reads the decompressed contents. Bytes behind the first stream are ignored: a kernel payload carries its size there.
///
/// # Errors
/// The first bytes belong to no format known here.
pub(crate) fn reader<'a>(input: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(1 << 16, input);
    let magic = peek(&mut input)?;
    Ok(match () {
        () if magic.starts_with(XZ) => Box::new(liblzma::read::XzDecoder::new(rejoin(magic, input))),
        () if magic.starts_with(GZIP) => Box::new(flate2::read::GzDecoder::new(rejoin(magic, input))),
        () if magic.starts_with(ZSTD) => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(rejoin(magic, input)).map_err(io::Error::other)?)
        }
        () if magic.starts_with(LZ4_LEGACY) => Box::new(Cursor::new(lz4_legacy(rejoin(magic, input))?)),
        () if magic.starts_with(ELF) || is_tar(&mut input)? => Box::new(rejoin(magic, input)),
        () => bail!("unknown compression (first bytes {magic:02x?})"),
    })
}

type Rejoined<R> = Chain<Cursor<Vec<u8>>, R>;

fn peek(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut magic = Vec::new();
    input.by_ref().take(6).read_to_end(&mut magic)?;
    Ok(magic)
}

fn rejoin<R: Read>(magic: Vec<u8>, rest: R) -> Rejoined<R> {
    Cursor::new(magic).chain(rest)
}

/// Whether an uncompressed tar header follows; its own magic is at byte 257, six of which are already read.
fn is_tar(input: &mut impl BufRead) -> io::Result<bool> {
    Ok(input.fill_buf()?.get(251..256) == Some(b"ustar"))
}

/// The format of `lz4 -l`, which kernels use: four magic bytes, then blocks with a length before each.
fn lz4_legacy(mut input: impl Read) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    input.read_to_end(&mut all)?;
    lz4_blocks(&all[LZ4_LEGACY.len()..])
}

fn lz4_blocks(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let Some((block, after)) = tail.split_at_checked(u32::from_le_bytes(*len) as usize) else { break };
        let start = out.len();
        out.resize(start + LZ4_BLOCK_BYTES_MAX, 0);
        let n = lz4_flex::block::decompress_into(block, &mut out[start..])?;
        out.truncate(start + n);
        rest = after;
        if n < LZ4_BLOCK_BYTES_MAX {
            break;
        }
    }
    Ok(out)
}
