//! Taking the bootable ELF file out of a distribution's bzImage.
//!
//! A bzImage is a real-mode loader around the compressed kernel proper. The microvm machine enters the kernel through
//! its PVH note, which only the ELF file inside has. Offsets are those of the x86 boot protocol, 2.08 or newer.

use std::io::Read;

use anyhow::{Context, Result, bail};

use crate::decompress;

const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// What the PVH note says in front of its entry address: name size, type 18 and the name.
const PVH_NOTE: &[u8] = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0";
const PVH_NOTE_64: &[u8] = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";

/// The `vmlinux` inside `bzimage`.
///
/// # Errors
/// Not a bzImage, an unknown compression, or a kernel without the PVH entry point.
pub(crate) fn extract_vmlinux(bzimage: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes =
            bzimage.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).context("truncated header")?;
        Ok(u32::from_le_bytes(bytes) as usize)
    };
    if bzimage.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        bail!("not a Linux bzImage");
    }
    if word(VERSION)? & 0xffff < 0x208 {
        bail!("boot protocol older than 2.08");
    }
    // The protocol's way of saying four.
    let setup_sectors = match bzimage[SETUP_SECTORS] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup_sectors + 1) * SECTOR + word(PAYLOAD_OFFSET)?;
    let payload =
        bzimage.get(start..start + word(PAYLOAD_LENGTH)?).context("payload behind the end of the file")?;
    let mut vmlinux = Vec::with_capacity(payload.len() * 5);
    decompress::reader(payload)?.read_to_end(&mut vmlinux).context("cannot decompress the kernel")?;
    check_bootable(&vmlinux)?;
    Ok(vmlinux)
}

/// Whether an ELF file can be entered by a VMM without firmware.
pub(crate) fn check_bootable(vmlinux: &[u8]) -> Result<()> {
    if !vmlinux.starts_with(b"\x7fELF") {
        bail!("the kernel is not an ELF file");
    }
    let has = |note: &[u8]| memfind(vmlinux, note);
    if !has(PVH_NOTE) && !has(PVH_NOTE_64) {
        bail!("the kernel has no PVH entry point (CONFIG_PVH)");
    }
    Ok(())
}

fn memfind(haystack: &[u8], needle: &[u8]) -> bool {
    // Notes are aligned to four bytes, which makes this four times cheaper than looking everywhere.
    haystack.chunks_exact(4).enumerate().any(|(i, _)| haystack[i * 4..].starts_with(needle))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20fu16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend([0; 16]);
        image.extend(payload);
        image.extend(b"signature");
        image
    }

    fn kernel() -> Vec<u8> {
        [b"\x7fELF", PVH_NOTE, &[7; 5000]].concat()
    }

    #[test]
    fn every_compression_a_kernel_may_use_is_undone() {
        let kernel = kernel();
        let mut gzip = Vec::new();
        flate2::read::GzEncoder::new(&kernel[..], flate2::Compression::fast())
            .read_to_end(&mut gzip)
            .unwrap();
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(&kernel[..], 1).read_to_end(&mut xz).unwrap();
        let zstd =
            ruzstd::encoding::compress_to_vec(&kernel[..], ruzstd::encoding::CompressionLevel::Fastest);
        let block = lz4_flex::block::compress(&kernel);
        let lz4 = [b"\x02\x21\x4c\x18", &(block.len() as u32).to_le_bytes()[..], &block].concat();
        for mut payload in [gzip, xz, zstd, lz4, kernel.clone()] {
            payload.extend((kernel.len() as u32).to_le_bytes());
            let vmlinux = extract_vmlinux(&image(&payload)).unwrap();
            assert_eq!(vmlinux[..kernel.len()], kernel);
        }
    }

    #[test]
    fn what_cannot_boot_is_refused() {
        let refusal = |image: &[u8]| extract_vmlinux(image).unwrap_err().to_string();
        assert_eq!(refusal(b"MZ"), "not a Linux bzImage");
        assert_eq!(
            refusal(&image(b"plain text")),
            "unknown compression (first bytes [70, 6c, 61, 69, 6e, 20])"
        );
        assert_eq!(
            refusal(&image(b"\x7fELF without a note")),
            "the kernel has no PVH entry point (CONFIG_PVH)"
        );
    }
}
