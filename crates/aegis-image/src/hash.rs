//! SHA-256 of what passes by.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use aegis_types::Digest;
use sha2::{Digest as _, Sha256};

/// Hashes what is read through it.
pub(crate) struct Hashing<R> {
    input: R,
    hasher: Sha256,
}

impl<R> Hashing<R> {
    pub(crate) fn new(input: R) -> Self {
        Hashing { input, hasher: Sha256::new() }
    }

    /// The digest of everything read so far.
    pub(crate) fn digest(self) -> Digest {
        digest(self.hasher)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

pub(crate) fn of_bytes(bytes: &[u8]) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    digest(hasher)
}

pub(crate) fn of_file(path: &Path) -> io::Result<Digest> {
    let mut file = Hashing::new(File::open(path)?);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(file.digest()),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn digest(hasher: Sha256) -> Digest {
    Digest::from_sha256(&hasher.finalize().into())
}
