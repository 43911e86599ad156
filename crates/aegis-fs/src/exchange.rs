//! One message of the guest's kernel and the answer to it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use aegis_proto::fuse::{ANSWER_HEADER, MESSAGE_MAX, REQUEST_HEADER};
use fuse_backend_rs::abi::fuse_abi::Opcode;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek, tell};

use crate::names::UNNAMED;
use crate::watch::Notice;
use crate::{Directory, error};

/// Place of `size` in `struct fuse_read_in`.
const READ_SIZE: usize = 16;
/// Bytes of content with which a request is not worth a thread of its own.
const SHORT_MAX: usize = 128 * 1024;
/// Operation of `linux/fuse.h` that the library does not know yet: a file without a name (`O_TMPFILE`).
const TMPFILE: u32 = 51;
/// Bytes of `struct fuse_create_in`, which both have.
const CREATE_IN: usize = 16;

/// A request as it was received: checked for its length, and nothing else.
pub(crate) struct Request(Vec<u8>);

impl Request {
    /// `None` for what is too short.
    pub(crate) fn new(message: Vec<u8>) -> Option<Self> {
        (message.len() >= REQUEST_HEADER).then(|| Self(message).translated())
    }

    /// One for a file without a name becomes one that the library knows, for a name that no file can have.
    fn translated(mut self) -> Self {
        if self.opcode() == TMPFILE && self.0.len() >= REQUEST_HEADER + CREATE_IN {
            self.0.truncate(REQUEST_HEADER + CREATE_IN);
            self.0.extend_from_slice(UNNAMED.to_bytes_with_nul());
            let length = u32::try_from(self.0.len()).expect("a few dozen");
            self.0[..4].copy_from_slice(&length.to_le_bytes());
            self.0[4..8].copy_from_slice(&(Opcode::Create as u32).to_le_bytes());
        }
        self
    }

    fn opcode(&self) -> u32 {
        u32::from_le_bytes(self.0[4..8].try_into().expect("four bytes"))
    }

    /// Whether the guest expects an answer. The kernel gets one to a release as well, from whoever is between us.
    fn is_answered(&self) -> bool {
        let silent =
            [Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt, Opcode::NotifyReply, Opcode::Release];
        !silent.iter().any(|&silent| self.opcode() == silent as u32)
    }

    /// Whether it moves content or waits for a disk, so that others should not have to wait for it.
    pub(crate) fn is_long(&self) -> bool {
        let is = |operation: Opcode| self.opcode() == operation as u32;
        let waits = [Opcode::Fsync, Opcode::Fsyncdir, Opcode::Fallocate].into_iter().any(is);
        let size = self.0.get(REQUEST_HEADER + READ_SIZE..REQUEST_HEADER + READ_SIZE + 4);
        let asked = size.map_or(0, |size| u32::from_le_bytes(size.try_into().expect("four bytes")));
        waits || self.0.len() > SHORT_MAX || (is(Opcode::Read) && asked as usize > SHORT_MAX)
    }
}

/// Answers requests. The library writes to a descriptor and in one piece: here it is memory.
pub(crate) struct Exchange {
    memory: OwnedFd,
    space: Vec<u8>,
}

impl Exchange {
    pub(crate) fn new() -> io::Result<Self> {
        let memory = memfd_create(c"answers", MemfdFlags::CLOEXEC)?;
        Ok(Self { memory, space: vec![0; MESSAGE_MAX] })
    }

    /// The answer to a request; empty if none is expected.
    pub(crate) fn answer(
        &mut self,
        server: &Server<Arc<Directory>>,
        mut request: Request,
    ) -> io::Result<Vec<u8>> {
        seek(&self.memory, SeekFrom::Start(0))?;
        let reader =
            Reader::<()>::from_fuse_buffer(FuseBuf::new(&mut request.0)).map_err(io::Error::other)?;
        let writer =
            FuseDevWriter::new(self.memory.as_raw_fd(), &mut self.space).map_err(io::Error::other)?;
        let outcome = server.handle_message(reader, Writer::from(writer), None, None);
        if !request.is_answered() {
            return Ok(Vec::new());
        }
        let answer = self.written()?;
        if answer.len() >= ANSWER_HEADER {
            return Ok(answer);
        }
        // Nothing that a kernel sends, but whoever waits must not wait for ever.
        if let Err(why) = outcome {
            tracing::debug!("a request that makes no sense: {why}");
        }
        Ok(refusal(&request))
    }

    /// The message that tells the guest of a change.
    pub(crate) fn invalidation(
        &mut self,
        server: &Server<Arc<Directory>>,
        notice: &Notice,
    ) -> io::Result<Vec<u8>> {
        seek(&self.memory, SeekFrom::Start(0))?;
        let writer =
            FuseDevWriter::<()>::new(self.memory.as_raw_fd(), &mut self.space).map_err(io::Error::other)?;
        match notice {
            Notice::Node(id) => server.notify_inval_inode(writer, *id, 0, 0),
            Notice::Name(parent, name) => server.notify_inval_entry(writer, *parent, name as &CStr),
        }
        .map_err(io::Error::other)?;
        self.written()
    }

    fn written(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(tell(&self.memory)?).map_err(|_| error(libc::EIO))?;
        let mut written = vec![0; length];
        let read = rustix::io::pread(&self.memory, &mut written[..], 0)?;
        written.truncate(read);
        Ok(written)
    }
}

fn refusal(request: &Request) -> Vec<u8> {
    let length = u32::try_from(ANSWER_HEADER).expect("16");
    [&length.to_le_bytes()[..], &(-libc::EINVAL).to_le_bytes(), &request.0[8..16]].concat()
}
