//! Writing the archive format that the kernel unpacks at boot: `newc` cpio, without compression (unpacking costs more
//! than it saves). Owners are root and times zero, so equal contents make equal archives.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written to `out`.
pub(crate) struct Writer<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Writer<W> {
    /// An empty archive.
    pub(crate) fn new(out: W) -> Writer<W> {
        Writer { out, inode: 0 }
    }

    /// Adds a directory; its parent must have been added before.
    pub(crate) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a regular file.
    pub(crate) fn file(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.entry(name, REGULAR | mode, (0, 0), contents)
    }

    /// Adds a character device, `device` being (major, minor).
    pub(crate) fn device(&mut self, name: &str, mode: u32, device: (u32, u32)) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE | mode, device, &[])
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) -> io::Result<()> {
        let size = u32::try_from(contents.len()).map_err(|_| io::Error::other("file of 4 GiB or more"))?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        self.inode += 1;
        let (uid, gid, links, mtime, check) = (0, 0, 1, 0, 0);
        let fields =
            [self.inode, mode, uid, gid, links, mtime, size, 0, 0, device.0, device.1, name_size, check];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08x}");
        }
        self.padded(&[header.as_bytes(), name.as_bytes(), b"\0"])?;
        self.padded(&[contents])
    }

    /// Writes `parts`, then zeros up to a multiple of four.
    fn padded(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        for part in parts {
            self.out.write_all(part)?;
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.out.write_all(&[0; 3][..len.next_multiple_of(4) - len])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn entries_have_the_layout_the_kernel_expects() {
        let mut archive = Writer::new(Vec::new());
        archive.directory("dev").unwrap();
        archive.device("dev/null", 0o666, (1, 3)).unwrap();
        archive.file("init", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let zero = "00000000";
        let directory = format!("070701{:08x}{:08x}{zero}{zero}{:08x}{zero}{zero}", 1, 0o40755, 1);
        assert!(text.starts_with(&directory), "{text}");
        assert!(text.contains(&format!("{:08x}{:08x}{:08x}{zero}dev/null\0", 1, 3, 9)), "{text}");
        assert!(text.contains(&format!("{:08x}{zero}init\0\0hello\0\0\0070701", 5)), "{text}");
        assert!(text.contains("TRAILER!!!\0"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
