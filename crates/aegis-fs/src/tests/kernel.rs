//! What the guest's kernel would say, and what it hears.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_proto::fuse::{END, NONCE_BYTES, REQUEST_HEADER};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, WriteHalf, duplex, split};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::{Directory, SessionError, serve};

/// Far above what anything here takes.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
const NONCE: [u8; NONCE_BYTES] = *b"sixteen bytes ok";

pub(super) const ROOT: u64 = 1;

/// Operations of `linux/fuse.h`.
pub(super) mod op {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const TMPFILE: u32 = 51;
    /// Beyond every one that there is.
    pub(crate) const LAST: u32 = 60;
}

/// What a message tells without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Node(u64),
    Name(u64, String),
}

/// A directory, its server, and the kernel's end of the stream.
pub(super) struct Kernel {
    pub(super) directory: Arc<Directory>,
    reader: BufReader<tokio::io::ReadHalf<DuplexStream>>,
    writer: WriteHalf<DuplexStream>,
    pub(super) session: JoinHandle<Result<(), SessionError>>,
    next: u64,
    told: VecDeque<Told>,
}

pub(super) fn scratch() -> TempDir {
    tempfile::tempdir().unwrap()
}

impl Kernel {
    pub(super) async fn mount(path: &Path) -> Self {
        Self::of(Directory::open(path, false).unwrap()).await
    }

    pub(super) async fn of(directory: Arc<Directory>) -> Self {
        let (ours, theirs) = duplex(4 << 20);
        let (reader, writer) = split(theirs);
        let served = Arc::clone(&directory);
        let session = tokio::spawn(async move {
            let mut reader = BufReader::new(reader);
            serve(&[served], NONCE, &mut reader, &Arc::new(Mutex::new(writer))).await
        });
        let (reader, writer) = split(ours);
        let mut kernel = Self {
            directory,
            reader: BufReader::new(reader),
            writer,
            session,
            next: 1,
            told: VecDeque::new(),
        };
        // What is left of an earlier session comes first.
        kernel.raw(b"rubbish").await;
        kernel.raw(&NONCE).await;
        let mut answer = [0; NONCE_BYTES];
        kernel.reader.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, NONCE);
        let init = [7_u32, 38, 128 << 10, u32::MAX].map(u32::to_le_bytes).concat();
        kernel.call(op::INIT, 0, &[&init[..], &[0; 48]].concat()).await.unwrap();
        kernel
    }

    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        // A session that has ended takes nothing more, which its own outcome tells.
        let _ = self.writer.write_all(bytes).await;
    }

    pub(super) async fn send(&mut self, operation: u32, node: u64, body: &[u8]) -> u64 {
        self.next += 2;
        let length = u32::try_from(REQUEST_HEADER + body.len()).unwrap();
        let mut frame = Vec::new();
        for word in [0, length, operation] {
            frame.extend(u32::to_le_bytes(word));
        }
        frame.extend(self.next.to_le_bytes());
        frame.extend(node.to_le_bytes());
        // User, group, process, padding.
        frame.extend([0; 16]);
        frame.extend(body);
        self.raw(&frame).await;
        self.next
    }

    /// The next message.
    async fn receive(&mut self) -> (i32, u64, Vec<u8>) {
        let received = async {
            assert_eq!(self.reader.read_u32_le().await.unwrap(), 0);
            let length = self.reader.read_u32_le().await.unwrap();
            let error = self.reader.read_i32_le().await.unwrap();
            let number = self.reader.read_u64_le().await.unwrap();
            let mut body = vec![0; length as usize - 16];
            self.reader.read_exact(&mut body).await.unwrap();
            (error, number, body)
        };
        timeout(DEADLINE, received).await.expect("the server answers")
    }

    fn note(&mut self, code: i32, body: &[u8]) {
        let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        self.told.push_back(match code {
            2 => Told::Node(number(0)),
            3 => Told::Name(number(0), String::from_utf8(body[16..body.len() - 1].to_vec()).unwrap()),
            other => panic!("an unknown notification {other}"),
        });
    }

    /// Asks, and takes the answer: its body, or the number of the error.
    pub(super) async fn call(&mut self, operation: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let sent = self.send(operation, node, body).await;
        loop {
            match self.receive().await {
                (code, 0, body) => self.note(code, &body),
                (0, number, body) if number == sent => return Ok(body),
                (error, number, _) if number == sent => return Err(-error),
                (_, other, _) => panic!("an answer to {other}"),
            }
        }
    }

    /// Waits until all of this was told.
    pub(super) async fn hears(&mut self, mut wanted: Vec<Told>) {
        loop {
            while let Some(told) = self.told.pop_front() {
                wanted.retain(|wanted| *wanted != told);
            }
            if wanted.is_empty() {
                return;
            }
            let (code, number, body) = self.receive().await;
            assert_eq!(number, 0, "nobody asked; still wanted: {wanted:?}");
            self.note(code, &body);
        }
    }

    /// What was told until now, once everything that happened before was looked at.
    pub(super) async fn heard(&mut self) -> Vec<Told> {
        // A change that is surely told comes after all earlier ones.
        let marker = ".marker-of-the-test";
        self.look_up(ROOT, marker).await.unwrap_err();
        let path = std::path::PathBuf::from(format!(
            "{}/{marker}",
            crate::locate::path_of(&self.directory.directory(ROOT).unwrap()).to_str().unwrap()
        ));
        std::fs::write(&path, "").unwrap();
        let marker = Told::Name(ROOT, marker.to_owned());
        while !self.told.contains(&marker) {
            let (code, number, body) = self.receive().await;
            assert_eq!(number, 0);
            self.note(code, &body);
        }
        self.told.drain(..).filter(|told| *told != marker && *told != Told::Node(ROOT)).collect()
    }

    pub(super) async fn look_up(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let body = self.call(op::LOOKUP, parent, &text(name)).await?;
        match u64::from_le_bytes(body[..8].try_into().unwrap()) {
            0 => Err(libc::ENOENT),
            node => Ok(node),
        }
    }

    /// Walks down.
    pub(super) async fn walk(&mut self, path: &str) -> Result<u64, i32> {
        let mut node = ROOT;
        for name in path.split('/') {
            node = self.look_up(node, name).await?;
        }
        Ok(node)
    }

    /// Node and handle of a new file.
    pub(super) async fn create(&mut self, parent: u64, name: &str, mode: u32) -> Result<(u64, u64), i32> {
        let flags = (libc::O_CREAT | libc::O_RDWR).cast_unsigned();
        let body = [words(&[flags, mode, 0, 0]), text(name)].concat();
        let body = self.call(op::CREATE, parent, &body).await?;
        let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        Ok((number(0), number(128)))
    }

    pub(super) async fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let body = self.call(op::OPEN, node, &words(&[flags.cast_unsigned(), 0])).await?;
        Ok(u64::from_le_bytes(body[..8].try_into().unwrap()))
    }

    pub(super) async fn write(&mut self, node: u64, handle: u64, at: u64, bytes: &[u8]) -> Result<u32, i32> {
        let size = u32::try_from(bytes.len()).unwrap();
        let head = [&handle.to_le_bytes()[..], &at.to_le_bytes(), &words(&[size, 0]), &[0; 16]].concat();
        let body = self.call(op::WRITE, node, &[&head, bytes].concat()).await?;
        Ok(u32::from_le_bytes(body[..4].try_into().unwrap()))
    }

    pub(super) async fn read(&mut self, node: u64, handle: u64, at: u64, size: u32) -> Result<Vec<u8>, i32> {
        let head = [&handle.to_le_bytes()[..], &at.to_le_bytes(), &words(&[size, 0]), &[0; 16]].concat();
        self.call(op::READ, node, &head).await
    }

    /// Everything of a file, by a handle of its own.
    pub(super) async fn content(&mut self, node: u64) -> Result<Vec<u8>, i32> {
        let handle = self.open(node, libc::O_RDONLY).await?;
        let read = self.read(node, handle, 0, 1 << 20).await;
        self.release(node, handle).await;
        read
    }

    pub(super) async fn release(&mut self, node: u64, handle: u64) {
        self.send(op::RELEASE, node, &[&handle.to_le_bytes()[..], &[0; 16]].concat()).await;
    }

    /// Size, mode and number of names.
    pub(super) async fn attributes(&mut self, node: u64) -> Result<(u64, u32, u32), i32> {
        let body = self.call(op::GETATTR, node, &[0; 16]).await?;
        let attr = &body[16..];
        let word = |at: usize| u32::from_le_bytes(attr[at..at + 4].try_into().unwrap());
        Ok((u64::from_le_bytes(attr[8..16].try_into().unwrap()), word(60), word(64)))
    }

    pub(super) async fn rename(&mut self, from: (u64, &str), to: (u64, &str)) -> Result<(), i32> {
        let body = [&to.0.to_le_bytes()[..], &text(from.1), &text(to.1)].concat();
        self.call(op::RENAME, from.0, &body).await.map(drop)
    }

    /// Names in a directory, read in small pieces.
    pub(super) async fn list(&mut self, node: u64, size: u32) -> Result<Vec<String>, i32> {
        let (mut names, mut at) = (Vec::new(), 0_u64);
        loop {
            let head = [&[0; 8][..], &at.to_le_bytes(), &words(&[size, 0]), &[0; 16]].concat();
            let body = self.call(op::READDIRPLUS, node, &head).await?;
            if body.is_empty() {
                return Ok(names);
            }
            let mut rest = &body[..];
            while rest.len() > 152 {
                let entry = &rest[128..];
                at = u64::from_le_bytes(entry[8..16].try_into().unwrap());
                let length = u32::from_le_bytes(entry[16..20].try_into().unwrap()) as usize;
                names.push(String::from_utf8(entry[24..24 + length].to_vec()).unwrap());
                rest = &rest[128 + (24 + length).next_multiple_of(8)..];
            }
        }
    }

    /// Takes leave, as a guest that is being parked.
    pub(super) async fn leave(mut self) -> Arc<Directory> {
        let mut frame = vec![0; 4 + REQUEST_HEADER];
        frame[..4].copy_from_slice(&END.to_le_bytes());
        frame[4] = 40;
        self.raw(&frame).await;
        timeout(DEADLINE, self.session).await.expect("it ends").unwrap().unwrap();
        self.directory
    }
}

pub(super) fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
