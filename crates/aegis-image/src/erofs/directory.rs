//! Directory content: blocks of entries followed by their names, sorted by name across the whole directory.

use super::format::{BLOCK_SIZE, DIRENT_SIZE, FileType};

/// Splits sorted names into blocks without looking at anything but their lengths, so that sizes are known before
/// addresses are.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    full_blocks: u64,
    used: usize,
}

impl Packer {
    /// Takes the next name; true if it starts a new block.
    pub(crate) fn push(&mut self, name_len: usize) -> bool {
        let need = DIRENT_SIZE + name_len;
        let starts_block = self.used + need > BLOCK_SIZE;
        if starts_block {
            self.full_blocks += 1;
            self.used = 0;
        }
        self.used += need;
        starts_block
    }

    /// Bytes of the directory: whole blocks, then what the last one holds.
    pub(crate) fn size(&self) -> u64 {
        self.full_blocks * BLOCK_SIZE as u64 + self.used as u64
    }
}

pub(crate) struct Dirent<'n> {
    pub name: &'n [u8],
    pub nid: u64,
    pub file_type: FileType,
}

/// The content of a directory, all but its last block padded. `entries` are sorted and include `.` and `..`.
pub(crate) fn encode(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut packer = Packer::default();
    let mut start = 0;
    for (i, entry) in entries.iter().enumerate() {
        if packer.push(entry.name.len()) {
            encode_block(&mut out, &entries[start..i]);
            out.resize(out.len().next_multiple_of(BLOCK_SIZE), 0);
            start = i;
        }
    }
    encode_block(&mut out, &entries[start..]);
    debug_assert_eq!(out.len() as u64, packer.size());
    out
}

fn encode_block(out: &mut Vec<u8>, entries: &[Dirent<'_>]) {
    let mut name_offset = entries.len() * DIRENT_SIZE;
    for entry in entries {
        out.extend(entry.nid.to_le_bytes());
        out.extend((name_offset as u16).to_le_bytes()); // within a block of 4096 bytes
        out.extend([entry.file_type.dirent(), 0]);
        name_offset += entry.name.len();
    }
    for entry in entries {
        out.extend(entry.name);
    }
}
