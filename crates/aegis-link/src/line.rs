//! Reading one line without taking a byte more: what follows belongs to somebody else.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Reads up to and without the next newline.
///
/// # Errors
/// `UnexpectedEof` at the end of the stream, `InvalidData` when the line is longer than `max` bytes.
pub(crate) async fn read_line_exact<R: AsyncRead + Unpin>(reader: &mut R, max: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let byte = reader.read_u8().await?;
        if byte == b'\n' {
            return Ok(line);
        }
        if line.len() == max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("line longer than {max} bytes")));
        }
        line.push(byte);
    }
}
