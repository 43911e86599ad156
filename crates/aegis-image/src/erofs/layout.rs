//! Where inodes go in the metadata area.

use std::collections::BTreeSet;

use super::format::{BLOCK_SIZE, INODE_SIZE, SLOT_SIZE};

/// Partly filled blocks kept for later inodes. More would pack little better and scatter neighbours further.
const OPEN_BLOCKS_MAX: usize = 64;

/// Hands out places for inodes such that none that fits a block crosses into the next: the kernel requires it of
/// tails stored inline.
#[derive(Debug)]
pub(crate) struct MetadataLayout {
    /// `(free bytes at the end, block)`
    open: BTreeSet<(usize, u64)>,
    blocks: u64,
    /// End of the last inode, in bytes.
    end: u64,
}

impl MetadataLayout {
    pub(crate) fn new() -> Self {
        // Address zero means "no inode" in places: leave it unused.
        MetadataLayout { open: BTreeSet::from([(BLOCK_SIZE - SLOT_SIZE, 0)]), blocks: 1, end: 0 }
    }

    /// The address (in slots) of a fresh range of `len` bytes.
    pub(crate) fn place(&mut self, len: usize) -> u64 {
        let len = len.next_multiple_of(SLOT_SIZE);
        let (block, offset) = if len > BLOCK_SIZE {
            let blocks = len.div_ceil(BLOCK_SIZE);
            let first = self.take_blocks(blocks as u64);
            self.keep_open(blocks * BLOCK_SIZE - len, self.blocks - 1);
            (first, 0)
        } else {
            let best = self.open.range((len, 0)..).next().copied();
            let (free, block) = match best {
                Some(best) => {
                    self.open.remove(&best);
                    best
                }
                None => (BLOCK_SIZE, self.take_blocks(1)),
            };
            self.keep_open(free - len, block);
            (block, BLOCK_SIZE - free)
        };
        let start = block * BLOCK_SIZE as u64 + offset as u64;
        self.end = self.end.max(start + len as u64);
        start / SLOT_SIZE as u64
    }

    fn take_blocks(&mut self, count: u64) -> u64 {
        let first = self.blocks;
        self.blocks += count;
        first
    }

    fn keep_open(&mut self, free: usize, block: u64) {
        if free < INODE_SIZE {
            return;
        }
        self.open.insert((free, block));
        if self.open.len() > OPEN_BLOCKS_MAX {
            self.open.pop_first();
        }
    }

    /// Length of the metadata area in blocks. Something always follows the last inode: `fsck.erofs` 1.5 looks for
    /// attributes after every inode, attributes or not, and takes the end of the image for damage.
    pub(crate) fn blocks(&self) -> u64 {
        if self.end == self.blocks * BLOCK_SIZE as u64 { self.blocks + 1 } else { self.blocks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_never_overlap_and_small_ones_never_cross_blocks() {
        let mut layout = MetadataLayout::new();
        let mut taken = vec![(0, SLOT_SIZE as u64)];
        let mut state = 1u32;
        for _ in 0..5000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let len = 64 + (state >> 16) as usize % if state & 0x700 == 0 { 9000 } else { 4033 };
            let start = layout.place(len) * SLOT_SIZE as u64;
            let end = start + len as u64;
            if len <= BLOCK_SIZE {
                assert_eq!(start / BLOCK_SIZE as u64, (end - 1) / BLOCK_SIZE as u64, "{len} at {start}");
            }
            assert!(end <= layout.blocks() * BLOCK_SIZE as u64);
            taken.push((start, end));
        }
        taken.sort_unstable();
        assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }
}
