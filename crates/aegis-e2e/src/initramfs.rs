//! A changed initramfs: newc cpio members (kernel documentation, "initramfs buffer format").

/// Adds an archive with one regular file. Linux unpacks concatenated archives in order, and the last file of a
/// name wins.
pub fn append_file(image: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    append(image, name, 0o100_000 | mode, data);
    append(image, "TRAILER!!!", 0, &[]);
}

fn append(image: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let links = 1;
    let fields = [
        0,
        mode,
        0,
        0,
        links,
        0,
        u32::try_from(data.len()).unwrap(),
        0,
        0,
        0,
        0,
        u32::try_from(name.len() + 1).unwrap(),
        0,
    ];
    image.extend_from_slice(b"070701");
    for field in fields {
        image.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    image.extend_from_slice(name.as_bytes());
    image.push(0);
    pad(image);
    image.extend_from_slice(data);
    pad(image);
}

fn pad(image: &mut Vec<u8>) {
    while !image.len().is_multiple_of(4) {
        image.push(0);
    }
}
