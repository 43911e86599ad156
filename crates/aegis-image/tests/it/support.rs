//! Making archives and looking into images.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use aegis_image::{BuildSummary, ImageError, Limits, build_erofs};
use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use tar::{EntryType, Header};
use tempfile::TempDir;

/// An archive under construction. Names go in as raw bytes, so that it can lie.
#[derive(Default)]
pub(crate) struct Archive(Vec<u8>);

impl Archive {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Any member; `edit` sees the header before its checksum is made.
    pub(crate) fn member(
        mut self,
        kind: u8,
        path: &[u8],
        data: &[u8],
        edit: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.set_entry_type(EntryType::new(kind));
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        edit(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.member(b'0', path.as_bytes(), data, |_| {})
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.member(b'5', path.as_bytes(), b"", |h| h.set_mode(0o755))
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.link(b'2', path, target)
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(b'1', path, target)
    }

    fn link(self, kind: u8, path: &str, target: &str) -> Self {
        self.member(kind, path.as_bytes(), b"", |h| {
            h.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        })
    }

    /// A PAX header for the next member.
    pub(crate) fn pax(self, records: &[(&[u8], &[u8])]) -> Self {
        let data = pax_records(records);
        self.member(b'x', b"pax", &data, |_| {})
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(crate) fn pax_records(records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut len = rest;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        out.extend_from_slice(format!("{len} ").as_bytes());
        out.extend_from_slice(&[key, &b"="[..], value, b"\n"].concat());
    }
    out
}

/// What a path of an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub links: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path, in order, that is the same inode.
    pub same_as: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File(Vec<u8>),
    Dir,
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

pub(crate) type Listing = BTreeMap<Vec<u8>, Seen>;

/// An image in a directory that goes away with it.
pub(crate) struct Built {
    pub dir: TempDir,
    pub image: PathBuf,
    pub summary: BuildSummary,
}

pub(crate) fn try_build(tar: &[u8], limits: &Limits) -> Result<Built, ImageError> {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("root.erofs");
    let result = build_erofs(tar, &image, limits);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    match result {
        Ok(summary) => {
            assert_eq!(left, ["root.erofs"], "nothing but the image is left");
            Ok(Built { dir, image, summary })
        }
        Err(error) => {
            assert!(left.is_empty(), "a failed build leaves nothing: {left:?}");
            Err(error)
        }
    }
}

/// Builds, has `fsck.erofs` check the structure and all data, and reads the image back.
pub(crate) fn build(tar: &[u8]) -> (Built, Listing) {
    let built = try_build(tar, &Limits::default()).unwrap();
    fsck(&built.image);
    let listing = read_image(&built.image);
    assert_eq!(built.summary.size_bytes, fs::metadata(&built.image).unwrap().len());
    (built, listing)
}

pub(crate) fn build_error(tar: &[u8]) -> String {
    try_build(tar, &Limits::default()).err().expect("the archive is refused").to_string()
}

pub(crate) fn fsck(image: &Path) {
    let output = Command::new("fsck.erofs").args(["-d3", "--extract"]).arg(image).output();
    let output = output.unwrap_or_else(|e| panic!("these tests need fsck.erofs (package erofs-utils): {e}"));
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "fsck.erofs refuses the image:\n{text}");
    // Its exit code alone says little: some versions return 0 after complaining.
    assert!(text.contains("No errors found"), "fsck.erofs complains:\n{text}");
}

pub(crate) fn read_image(path: &Path) -> Listing {
    let bytes = fs::read(path).unwrap();
    let fs = EroFS::new(SliceImage::new(&bytes)).unwrap();
    let mut found = BTreeMap::new();
    found.insert(b"/".to_vec(), fs.get_inode(fs.super_block().root_inode_id()).unwrap());
    for entry in fs.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        if !matches!(entry.dir_entry.file_name(), b"." | b"..") {
            found.insert(entry.dir_entry.path().into_vec(), entry.inode);
        }
    }
    let mut first = BTreeMap::new();
    let mut listing = Listing::new();
    for (path, inode) in found {
        let kind = if inode.is_dir() {
            Kind::Dir
        } else if inode.is_symlink() {
            Kind::Symlink(fs.read_link_inode(inode).unwrap().into_vec())
        } else if inode.is_file() {
            let mut data = Vec::new();
            fs.open_inode_file(inode).unwrap().read_to_end(&mut data).unwrap();
            assert_eq!(data.len() as u64, inode.data_size());
            Kind::File(data)
        } else if let Some((major, minor)) = inode.device() {
            match inode.file_type() {
                rustix::fs::FileType::CharacterDevice => Kind::Char(major, minor),
                _ => Kind::Block(major, minor),
            }
        } else {
            Kind::Fifo
        };
        let same_as = first.entry(inode.id()).or_insert_with(|| path.clone()).clone();
        let seen = Seen {
            kind,
            mode: inode.permissions().mode() & 0o7777,
            uid: inode.uid(),
            gid: inode.gid(),
            mtime: inode.modified_unix(),
            links: inode.nlink(),
            xattrs: fs.xattrs_inode(inode).unwrap(),
            same_as,
        };
        listing.insert(path, seen);
    }
    listing
}

/// Paths as text, for short assertions.
pub(crate) fn paths(listing: &Listing) -> Vec<String> {
    listing.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

pub(crate) fn kind<'l>(listing: &'l Listing, path: &str) -> &'l Kind {
    &listing.get(path.as_bytes()).unwrap_or_else(|| panic!("{path} is in the image")).kind
}
