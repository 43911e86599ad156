//! Putting an image together: contents as they come, the tree at the end.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::directory::{self, Dirent, Packer};
use super::erase;
use super::format::{BLOCK_SIZE, FileType, INODE_SIZE, InodeRecord, SLOT_SIZE, Superblock};
use super::layout::MetadataLayout;
use crate::tree::{Child, Directory, FileData, Inode, InodeId, Node, ROOT, Tree};

/// Holes shorter than this are written as zeros: seeking flushes the buffer.
const HOLE_BYTES_MIN: u64 = 64 << 10;

/// What an image came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Totals {
    pub inodes: u64,
    pub size_bytes: u64,
}

/// Writes to `image`; keeps tails, which belong beside inodes that have no place yet, in `spool`.
pub(crate) struct ImageWriter {
    image: BufWriter<File>,
    /// Bytes of the image so far.
    position: u64,
    spool: BufWriter<File>,
    spooled: u64,
}

/// The content of one file on its way in; the caller writes exactly `size` bytes.
pub(crate) struct FileWriter<'w> {
    writer: &'w mut ImageWriter,
    start_block: u32,
    size: u64,
    written: u64,
    /// Content from here on goes beside the inode.
    tail_start: u64,
    tail: Vec<u8>,
}

impl ImageWriter {
    /// Both files are empty.
    pub(crate) fn new(image: File, spool: File) -> io::Result<Self> {
        let mut image = BufWriter::with_capacity(256 << 10, image);
        image.seek(SeekFrom::Start(BLOCK_SIZE as u64))?; // the superblock comes last
        Ok(ImageWriter { image, position: BLOCK_SIZE as u64, spool: BufWriter::new(spool), spooled: 0 })
    }

    /// Starts a file of `size` bytes whose inode will have `xattr_len` bytes of attributes.
    pub(crate) fn begin_file(&mut self, size: u64, xattr_len: usize) -> io::Result<FileWriter<'_>> {
        let split = Split::new(size, xattr_len);
        let start_block = if split.whole == 0 { 0 } else { self.next_block()? };
        Ok(FileWriter {
            writer: self,
            start_block,
            size,
            written: 0,
            tail_start: split.whole,
            tail: Vec::new(),
        })
    }

    /// Lays out and writes everything but file contents, and flushes the image.
    pub(crate) fn finish(mut self, tree: &Tree<'_>) -> io::Result<Totals> {
        let mut plan = Plan::new(tree);
        for &id in &plan.order {
            if let Some(content) = plan.content(tree, id) {
                let xattr_len = tree.get(id).attributes.xattrs.len();
                let mut file = self.begin_file(content.len() as u64, xattr_len)?;
                file.write(&content)?;
                plan.contents[id.index()] = file.end()?;
            }
        }
        self.spool.flush()?;
        let metadata_block = self.next_block()?;
        let metadata_start = self.position;
        let mut by_address: Vec<InodeId> = plan.order.clone();
        by_address.sort_unstable_by_key(|id| plan.nids[id.index()]);
        for (number, &id) in (1..).zip(&by_address) {
            let address = metadata_start + plan.nids[id.index()] * SLOT_SIZE as u64;
            self.zeros(address - self.position)?;
            self.inode(tree.get(id), plan.content_place(tree, id), number, plan.links(tree, id))?;
        }
        self.zeros(metadata_start + plan.metadata_blocks * BLOCK_SIZE as u64 - self.position)?;
        let superblock = Superblock {
            root_nid: u16::try_from(plan.nids[ROOT.index()]).expect("the root is placed first"),
            inodes: by_address.len() as u64,
            blocks: self.next_block()?,
            metadata_block,
        };
        self.image.seek(SeekFrom::Start(0))?;
        self.image.write_all(&superblock.encode())?;
        self.image.flush()?;
        self.erase_unreachable(tree)?;
        Ok(Totals { inodes: by_address.len() as u64, size_bytes: self.position })
    }

    fn inode(&mut self, inode: &Inode, data: FileData, number: u32, links: u32) -> io::Result<()> {
        let attributes = &inode.attributes;
        let device = match inode.node {
            Node::CharDevice(device) | Node::BlockDevice(device) => Some(device),
            _ => None,
        };
        let record = InodeRecord {
            file_type: file_type(inode),
            permissions: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            links,
            size: data.size,
            tail_inline: data.tail.is_some(),
            start_block: data.start_block,
            device,
            xattr_len: attributes.xattrs.len(),
            number,
        };
        self.put(&record.encode())?;
        self.put(&attributes.xattrs)?;
        if let Some(offset) = data.tail {
            let mut tail = vec![0; (data.size % BLOCK_SIZE as u64) as usize];
            self.spool.get_ref().read_exact_at(&mut tail, offset)?;
            self.put(&tail)?;
        }
        Ok(())
    }

    /// Content whose last name was replaced or hidden takes no space and cannot be read from the image's blocks: a file
    /// that a layer removed may have been removed for a reason. The addresses of all other content stay what they are.
    fn erase_unreachable(&self, tree: &Tree<'_>) -> io::Result<()> {
        for inode in tree.inodes().iter().filter(|inode| inode.links == 0) {
            let Node::File(data) = &inode.node else { continue };
            let whole = Split::new(data.size, inode.attributes.xattrs.len()).whole;
            if whole > 0 {
                let start = u64::from(data.start_block) * BLOCK_SIZE as u64;
                erase::range(self.image.get_ref(), start, whole.next_multiple_of(BLOCK_SIZE as u64))?;
            }
        }
        Ok(())
    }

    fn next_block(&self) -> io::Result<u32> {
        debug_assert_eq!(self.position % BLOCK_SIZE as u64, 0);
        u32::try_from(self.position / BLOCK_SIZE as u64)
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "EROFS holds at most 2^32 blocks"))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.image.write_all(bytes)
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        self.position += count;
        io::copy(&mut io::repeat(0).take(count), &mut self.image).map(drop)
    }
}

impl FileWriter<'_> {
    /// Appends content.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 >= HOLE_BYTES_MIN && bytes.iter().all(|&b| b == 0) {
            return self.hole(bytes.len() as u64);
        }
        let left = self.tail_start.saturating_sub(self.written);
        let (whole, tail) = bytes.split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        self.writer.put(whole)?;
        self.tail.extend_from_slice(tail);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Appends zeros; long runs become holes of the image file too.
    pub(crate) fn hole(&mut self, count: u64) -> io::Result<()> {
        let whole = count.min(self.tail_start.saturating_sub(self.written));
        if whole >= HOLE_BYTES_MIN {
            // Whatever follows in the image (at least the root inode) is written, so the file gets its length.
            self.writer.position += whole;
            self.writer.image.seek(SeekFrom::Start(self.writer.position))?;
        } else {
            self.writer.zeros(whole)?;
        }
        self.tail.resize(self.tail.len() + (count - whole) as usize, 0);
        self.written += count;
        Ok(())
    }

    /// Completes the file.
    pub(crate) fn end(self) -> io::Result<FileData> {
        assert_eq!(self.written, self.size, "content is as long as announced");
        let writer = self.writer;
        let padding = writer.position.next_multiple_of(BLOCK_SIZE as u64) - writer.position;
        writer.zeros(padding)?;
        let mut data = FileData { size: self.size, start_block: self.start_block, tail: None };
        if !self.tail.is_empty() {
            data.tail = Some(writer.spooled);
            writer.spool.write_all(&self.tail)?;
            writer.spooled += self.tail.len() as u64;
        }
        Ok(data)
    }
}

/// How content divides between blocks of its own and the space after its inode.
struct Split {
    /// Bytes in blocks of their own.
    whole: u64,
    /// Bytes of the inode with all that follows it.
    inode_len: usize,
}

impl Split {
    fn new(size: u64, xattr_len: usize) -> Split {
        let head = INODE_SIZE + xattr_len;
        let tail = (size % BLOCK_SIZE as u64) as usize;
        if head + tail <= BLOCK_SIZE {
            Split { whole: size - tail as u64, inode_len: head + tail }
        } else {
            Split { whole: size, inode_len: head }
        }
    }
}

/// Addresses for every inode that can be reached.
struct Plan {
    /// Breadth first, so that what one directory lists lies close together.
    order: Vec<InodeId>,
    /// By arena index; zero is "not placed".
    nids: Vec<u64>,
    /// By arena index; of directories, what `..` is.
    parents: Vec<InodeId>,
    /// By arena index; where directories and link targets went.
    contents: Vec<FileData>,
    metadata_blocks: u64,
}

impl Plan {
    fn new(tree: &Tree<'_>) -> Plan {
        let mut plan = Plan {
            order: Vec::new(),
            nids: vec![0; tree.inodes().len()],
            parents: vec![ROOT; tree.inodes().len()],
            contents: vec![FileData::default(); tree.inodes().len()],
            metadata_blocks: 0,
        };
        let mut layout = MetadataLayout::new();
        plan.place(tree, &mut layout, ROOT);
        let mut next = 0;
        while let Some(&id) = plan.order.get(next) {
            next += 1;
            let Node::Directory(directory) = &tree.get(id).node else { continue };
            for child in directory.children.values() {
                if plan.nids[child.id.index()] == 0 {
                    plan.parents[child.id.index()] = id;
                    plan.place(tree, &mut layout, child.id);
                }
            }
        }
        plan.metadata_blocks = layout.blocks();
        plan
    }

    fn place(&mut self, tree: &Tree<'_>, layout: &mut MetadataLayout, id: InodeId) {
        let inode = tree.get(id);
        let size = match &inode.node {
            Node::Directory(directory) => {
                let mut packer = Packer::default();
                for (name, _) in listing(names(directory), id, id) {
                    packer.push(name.len());
                }
                packer.size()
            }
            Node::File(data) => data.size,
            Node::Symlink(target) => target.len() as u64,
            Node::CharDevice(_) | Node::BlockDevice(_) | Node::Fifo => 0,
        };
        let split = Split::new(size, inode.attributes.xattrs.len());
        self.nids[id.index()] = layout.place(split.inode_len);
        self.order.push(id);
    }

    /// Content that is made here rather than taken from the archive.
    fn content(&self, tree: &Tree<'_>, id: InodeId) -> Option<Vec<u8>> {
        match &tree.get(id).node {
            Node::Directory(directory) => {
                let entries: Vec<_> = listing(names(directory), id, self.parents[id.index()])
                    .into_iter()
                    .map(|(name, child)| Dirent {
                        name,
                        nid: self.nids[child.index()],
                        file_type: file_type(tree.get(child)),
                    })
                    .collect();
                Some(directory::encode(&entries))
            }
            Node::Symlink(target) => Some(target.to_vec()),
            _ => None,
        }
    }

    fn content_place(&self, tree: &Tree<'_>, id: InodeId) -> FileData {
        match tree.get(id).node {
            Node::File(data) => data,
            _ => self.contents[id.index()],
        }
    }

    fn links(&self, tree: &Tree<'_>, id: InodeId) -> u32 {
        match &tree.get(id).node {
            Node::Directory(directory) => {
                let is_directory = |child: &&Child| matches!(tree.get(child.id).node, Node::Directory(_));
                2 + directory.children.values().filter(is_directory).count() as u32
            }
            _ => tree.get(id).links,
        }
    }
}

fn names(directory: &Directory) -> impl Iterator<Item = (&[u8], InodeId)> {
    directory.children.iter().map(|(name, child)| (&**name, child.id))
}

/// The names of a directory in on-disk order, where `.` and `..` sort like any other name.
fn listing<'n>(
    children: impl Iterator<Item = (&'n [u8], InodeId)>,
    this: InodeId,
    parent: InodeId,
) -> Vec<(&'n [u8], InodeId)> {
    let mut names: Vec<_> = [(&b"."[..], this), (&b".."[..], parent)].into_iter().chain(children).collect();
    names.sort_by_key(|&(name, _)| name);
    names
}

fn file_type(inode: &Inode) -> FileType {
    match inode.node {
        Node::Directory(_) => FileType::Directory,
        Node::File(_) => FileType::File,
        Node::Symlink(_) => FileType::Symlink,
        Node::CharDevice(_) => FileType::CharDevice,
        Node::BlockDevice(_) => FileType::BlockDevice,
        Node::Fifo => FileType::Fifo,
    }
}
