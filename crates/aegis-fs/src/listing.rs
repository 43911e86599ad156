//! Reading directories.
//!
//! The guest does not open directories (`FUSE_NO_OPENDIR_SUPPORT`), which saves two messages for each and lets its kernel
//! keep the listing. So a read says only where it goes on. Where that is where the last one of the same directory ended,
//! it goes on with the same descriptor: some file systems find the right place in no other way when names were removed in
//! between.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, openat, seek};
use rustix::io::Errno;

use crate::Directory;
use crate::beneath::entries_buffer;
use crate::locate::stat_at;
use crate::table::NodeId;

/// Directories that are read at the same time; the others begin anew at the place where they were.
const STREAMS_MAX: usize = 32;

/// One name of a directory.
struct Listed {
    name: Box<CStr>,
    ino: u64,
    kind: FileType,
    /// Where the next one is.
    next: u64,
}

/// A directory that is being read.
pub(crate) struct Stream {
    fd: OwnedFd,
    ahead: VecDeque<Listed>,
    /// Where the reader is.
    at: u64,
}

impl Stream {
    fn open(directory: &OwnedFd, at: u64) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(directory, c".", flags, Mode::empty())?;
        if at != 0 {
            // Places are numbers of the host's file system, which may use all 64 bits.
            seek(&fd, SeekFrom::Start(at))?;
        }
        Ok(Self { fd, ahead: VecDeque::new(), at })
    }

    fn next(&mut self) -> io::Result<Option<Listed>> {
        if self.ahead.is_empty() {
            let mut buffer = entries_buffer();
            let mut entries = RawDir::new(&self.fd, &mut buffer);
            while let Some(entry) = entries.next() {
                let entry = entry?;
                self.ahead.push_back(Listed {
                    name: entry.file_name().into(),
                    ino: entry.ino(),
                    kind: entry.file_type(),
                    next: entry.next_entry_cookie(),
                });
                if entries.is_buffer_empty() {
                    break;
                }
            }
        }
        Ok(self.ahead.pop_front())
    }
}

impl Directory {
    /// Reads a directory from a place on. `add` gets each name, with what is there if `plus`; it gives 0 when there is no
    /// room for it.
    pub(crate) fn list(
        &self,
        id: NodeId,
        offset: u64,
        plus: bool,
        mut add: impl FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        // Before looking: what changes afterwards is reported.
        self.watch(id);
        let directory = self.directory(id)?;
        let mut stream = match self.take_stream(id, offset) {
            Some(stream) => stream,
            None => Stream::open(&directory, offset)?,
        };
        let mut any = false;
        while let Some(listed) = stream.next()? {
            let own = matches!(listed.name.to_bytes(), b"." | b"..");
            let entry = match plus && !own {
                false => Entry::default(),
                true => match stat_at(&directory, &listed.name) {
                    Ok(found) => self.enter(id, &listed.name, &found)?,
                    // Removed since, or not for us: the guest finds out when it looks.
                    Err(Errno::NOENT | Errno::ACCESS) => Entry::default(),
                    Err(e) => return Err(e.into()),
                },
            };
            let shown = DirEntry {
                ino: if entry.inode == 0 { listed.ino } else { entry.attr.st_ino },
                offset: listed.next,
                type_: kind_number(listed.kind),
                name: listed.name.to_bytes(),
            };
            let added = add(shown, entry);
            if !matches!(added, Ok(count) if count > 0) && entry.inode != 0 {
                self.forget_node(entry.inode, 1);
            }
            if added? == 0 {
                stream.ahead.push_front(listed);
                self.keep_stream(id, stream);
                return Ok(());
            }
            (stream.at, any) = (listed.next, true);
        }
        // Whoever got nothing was told that it was all.
        if any {
            self.keep_stream(id, stream);
        }
        Ok(())
    }

    fn take_stream(&self, id: NodeId, offset: u64) -> Option<Stream> {
        let mut streams = self.streams.lock().expect("no panic while held");
        let found = streams.iter().position(|(node, stream)| *node == id && stream.at == offset)?;
        // From the beginning everything is read anew.
        if offset == 0 { None } else { streams.remove(found).map(|(_, stream)| stream) }
    }

    fn keep_stream(&self, id: NodeId, stream: Stream) {
        let mut streams = self.streams.lock().expect("no panic while held");
        if streams.len() == STREAMS_MAX {
            streams.pop_front();
        }
        streams.push_back((id, stream));
    }
}

/// `DT_…` of readdir(3).
fn kind_number(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        known => known.as_raw_mode() >> 12,
    }
}
