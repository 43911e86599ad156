//! On-disk structures. All numbers are little-endian.

use crate::archive::{Device, Mtime};

pub(crate) const BLOCK_BITS: u8 = 12;
pub(crate) const BLOCK_SIZE: usize = 1 << BLOCK_BITS;
/// Inodes are addressed by multiples of this many bytes from the start of the metadata.
pub(crate) const SLOT_SIZE: usize = 32;
pub(crate) const INODE_SIZE: usize = 64;
pub(crate) const DIRENT_SIZE: usize = 12;
pub(crate) const SUPERBLOCK_OFFSET: usize = 1024;

const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock has a checksum; inode times are modification times.
const FEATURE_COMPAT: u32 = 0b11;

const S_IFIFO: u16 = 0o010000;
const S_IFCHR: u16 = 0o020000;
const S_IFDIR: u16 = 0o040000;
const S_IFBLK: u16 = 0o060000;
const S_IFREG: u16 = 0o100000;
const S_IFLNK: u16 = 0o120000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileType {
    File,
    Directory,
    CharDevice,
    BlockDevice,
    Fifo,
    Symlink,
}

impl FileType {
    /// As directory entries have it.
    pub(crate) fn dirent(self) -> u8 {
        match self {
            FileType::File => 1,
            FileType::Directory => 2,
            FileType::CharDevice => 3,
            FileType::BlockDevice => 4,
            FileType::Fifo => 5,
            FileType::Symlink => 7,
        }
    }

    fn mode(self) -> u16 {
        match self {
            FileType::File => S_IFREG,
            FileType::Directory => S_IFDIR,
            FileType::CharDevice => S_IFCHR,
            FileType::BlockDevice => S_IFBLK,
            FileType::Fifo => S_IFIFO,
            FileType::Symlink => S_IFLNK,
        }
    }
}

#[derive(Debug)]
pub(crate) struct InodeRecord {
    pub file_type: FileType,
    pub permissions: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    pub links: u32,
    pub size: u64,
    /// The last, partial block follows the inode and its attributes.
    pub tail_inline: bool,
    pub start_block: u32,
    pub device: Option<Device>,
    /// Bytes of attributes that follow the inode.
    pub xattr_len: usize,
    /// Only shown to 32-bit programs; the kernel's inode number is the address.
    pub number: u32,
}

impl InodeRecord {
    pub(crate) fn encode(&self) -> [u8; INODE_SIZE] {
        const EXTENDED: u16 = 1;
        const FLAT_PLAIN: u16 = 0;
        const FLAT_INLINE: u16 = 2;
        let layout = if self.tail_inline { FLAT_INLINE } else { FLAT_PLAIN };
        // The attribute header counts as one unit, though it is three times as long.
        let xattr_count = if self.xattr_len == 0 { 0 } else { (self.xattr_len - 12) / 4 + 1 } as u16;
        let place = self.device.map_or(self.start_block, encode_device);
        let mut out = [0; INODE_SIZE];
        let mut put = Put(&mut out);
        put.at(0, &(EXTENDED | layout << 1).to_le_bytes());
        put.at(2, &xattr_count.to_le_bytes());
        put.at(4, &(self.file_type.mode() | self.permissions).to_le_bytes());
        put.at(8, &self.size.to_le_bytes());
        put.at(16, &place.to_le_bytes());
        put.at(20, &self.number.to_le_bytes());
        put.at(24, &self.uid.to_le_bytes());
        put.at(28, &self.gid.to_le_bytes());
        put.at(32, &self.mtime.secs.to_le_bytes());
        put.at(40, &self.mtime.nanos.to_le_bytes());
        put.at(44, &self.links.to_le_bytes());
        out
    }
}

/// Linux' 32-bit device number: 12 bits of major, 20 of minor.
fn encode_device(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12)
}

#[derive(Debug)]
pub(crate) struct Superblock {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    pub metadata_block: u32,
}

impl Superblock {
    /// The whole first block. Build time, UUID and volume name stay zero: the image depends on nothing but the tree.
    pub(crate) fn encode(&self) -> [u8; BLOCK_SIZE] {
        let mut block = [0; BLOCK_SIZE];
        let mut put = Put(&mut block[SUPERBLOCK_OFFSET..]);
        put.at(0, &MAGIC.to_le_bytes());
        put.at(8, &FEATURE_COMPAT.to_le_bytes());
        put.at(12, &[BLOCK_BITS]);
        put.at(14, &self.root_nid.to_le_bytes());
        put.at(16, &self.inodes.to_le_bytes());
        put.at(36, &self.blocks.to_le_bytes());
        put.at(40, &self.metadata_block.to_le_bytes());
        // The checksum covers the block from here to its end, itself taken as zero.
        let checksum = crc32c(&block[SUPERBLOCK_OFFSET..]);
        block[SUPERBLOCK_OFFSET + 4..][..4].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

struct Put<'b>(&'b mut [u8]);

impl Put<'_> {
    fn at(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// CRC-32C without the final inversion. Runs once per image over 3 KiB: a table would be longer than the loop.
fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_published_check_value() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn device_numbers_use_the_kernel_encoding() {
        assert_eq!(encode_device(Device { major: 1, minor: 3 }), 0x103);
        assert_eq!(encode_device(Device { major: 0xfff, minor: 0xf_ffff }), 0xffff_ffff);
        assert_eq!(encode_device(Device { major: 259, minor: 256 }), 0x0011_0300);
    }
}
