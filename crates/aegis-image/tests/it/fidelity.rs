//! Everything an archive can say about a file is in the image.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::support::*;

fn device(header: &mut tar::Header, major: u32, minor: u32) {
    header.set_device_major(major).unwrap();
    header.set_device_minor(minor).unwrap();
}

#[test]
fn every_type_keeps_owner_mode_time_and_identity() {
    let long = "n".repeat(255);
    let long_path = format!("deep/{}/{long}", "d".repeat(200));
    let tar = Archive::new()
        .member(b'5', b"./", b"", |h| {
            h.set_mode(0o1777);
            h.set_uid(7);
            h.set_mtime(1_600_000_000);
        })
        .member(b'0', b"suid", b"x", |h| {
            h.set_mode(0o4755);
            h.set_uid(70_000);
            h.set_gid(4_000_000_000);
            h.set_mtime(1_700_000_000);
        })
        .hard_link("again", "suid")
        .hard_link("dir/thrice", "./again")
        .symlink("link", "../../etc/passwd")
        .member(b'3', b"null", b"", |h| device(h, 1, 3))
        .member(b'4', b"disk", b"", |h| device(h, 259, 0xf_fffe))
        .member(b'6', b"fifo", b"", |h| h.set_mode(0o600))
        .pax(&[(b"path", long_path.as_bytes()), (b"mtime", b"-1.5"), (b"uid", b"3000000000")])
        .file("ignored", b"long")
        .finish();
    let (built, listing) = build(&tar);

    let root = &listing[&b"/"[..]];
    assert_eq!((root.mode, root.uid, root.mtime, root.links), (0o1777, 7, (1_600_000_000, 0), 4));
    let suid = &listing[&b"/suid"[..]];
    assert_eq!((suid.mode, suid.uid, suid.gid), (0o4755, 70_000, 4_000_000_000));
    assert_eq!((suid.mtime, suid.links), ((1_700_000_000, 0), 3));
    for name in ["/again", "/dir/thrice", "/suid"] {
        assert_eq!(listing[name.as_bytes()].same_as, b"/again");
    }
    assert_eq!(kind(&listing, "/link"), &Kind::Symlink(b"../../etc/passwd".to_vec()));
    assert_eq!(kind(&listing, "/null"), &Kind::Char(1, 3));
    assert_eq!(kind(&listing, "/disk"), &Kind::Block(259, 0xf_fffe));
    assert_eq!((kind(&listing, "/fifo"), listing[&b"/fifo"[..]].mode), (&Kind::Fifo, 0o600));
    let deep = &listing[format!("/{long_path}").as_bytes()];
    assert_eq!(
        (&deep.kind, deep.mtime, deep.uid),
        (&Kind::File(b"long".to_vec()), (-2, 500_000_000), 3_000_000_000)
    );
    assert_eq!(listing[&b"/dir"[..]].mode, 0o755, "an implied parent");
    assert_eq!((built.summary.entries, built.summary.inodes), (9, 10));
    assert_eq!(fs::metadata(&built.image).unwrap().permissions().mode() & 0o7777, 0o644);
}

#[test]
fn attributes_are_kept_byte_for_byte_and_foreign_ones_counted() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let big = vec![0xa5; 60_000];
    let acl =
        b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    let tar = Archive::new()
        .pax(&[
            (b"SCHILY.xattr.security.capability", capability),
            (b"SCHILY.xattr.user.big", &big),
            (b"SCHILY.xattr.user.a%3Db", b"\0=\n"),
            (b"SCHILY.xattr.user.empty", b""),
            (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
            (b"SCHILY.xattr.system.posix_acl_access", acl),
            (b"SCHILY.xattr.com.apple.provenance", b"1"),
            (b"SCHILY.acl.default", b"user::rwx"),
        ])
        .file("bin/ping", &[1; 5000])
        .pax(&[(b"SCHILY.xattr.user.dir", b"d")])
        .dir("etc")
        .pax(&[(b"SCHILY.xattr.trusted.l", &[7; 3000])])
        .symlink("l", &"t".repeat(90))
        .file("plain", b"")
        .finish();
    let (built, listing) = build(&tar);
    let xattrs = &listing[&b"/bin/ping"[..]].xattrs;
    let expected: [(&[u8], &[u8]); 6] = [
        (b"security.capability", capability),
        (b"system.posix_acl_access", acl),
        (b"trusted.overlay.opaque", b"y"),
        (b"user.a=b", b"\0=\n"),
        (b"user.big", &big),
        (b"user.empty", b""),
    ];
    let found: Vec<(&[u8], &[u8])> = xattrs.iter().map(|(n, v)| (&n[..], &v[..])).collect();
    assert_eq!(found, expected);
    assert_eq!(kind(&listing, "/bin/ping"), &Kind::File(vec![1; 5000]));
    assert_eq!(listing[&b"/etc"[..]].xattrs[&b"user.dir"[..]], b"d");
    assert_eq!(listing[&b"/l"[..]].xattrs[&b"trusted.l"[..]], [7; 3000]);
    assert!(listing[&b"/plain"[..]].xattrs.is_empty());
    assert_eq!(built.summary.xattrs_skipped, 2);
}

#[test]
fn contents_of_every_alignment_survive() {
    let mut archive = Archive::new();
    let sizes = [0, 1, 511, 512, 513, 4031, 4032, 4033, 4095, 4096, 4097, 8127, 8128, 8129, 300_000];
    let content = |size: usize| (0..size).map(|i| (i % 251) as u8).collect::<Vec<u8>>();
    for size in sizes {
        archive = archive.file(&format!("f{size}"), &content(size));
    }
    for len in [1, 4031, 4032, 4033, 4095] {
        let target = "s".repeat(len);
        archive = archive.pax(&[(b"linkpath", target.as_bytes())]).symlink(&format!("l{len}"), "x");
    }
    let (_built, listing) = build(&archive.finish());
    for size in sizes {
        assert_eq!(kind(&listing, &format!("/f{size}")), &Kind::File(content(size)));
    }
    for len in [1, 4031, 4032, 4033, 4095] {
        assert_eq!(kind(&listing, &format!("/l{len}")), &Kind::Symlink(vec![b's'; len]));
    }
}

/// Inodes and tails that fill metadata blocks to the last byte.
#[test]
fn metadata_may_end_on_a_block_boundary() {
    for files in 1..70 {
        let archive = (0..files).fold(Archive::new(), |a, i| a.file(&format!("{i}"), b""));
        build(&archive.finish());
        let archive = (0..files).fold(Archive::new(), |a, i| a.file(&format!("{i}"), &[1; 4032]));
        build(&archive.finish());
    }
}

#[test]
fn large_directories_list_every_name_in_lookup_order() {
    let mut archive = Archive::new();
    let names: Vec<String> =
        (0..3000).map(|i| format!("{}{i}", ["!", "-", ".", "a", "~", "é"][i % 6])).collect();
    for name in &names {
        archive = archive.file(&format!("d/{name}"), name.as_bytes());
    }
    let (built, listing) = build(&archive.finish());
    assert_eq!(listing.len(), names.len() + 2);
    // The other reader finds names by binary search, as the kernel does.
    let bytes = fs::read(&built.image).unwrap();
    let fs = erofs_rs::EroFS::new(erofs_rs::backend::SliceImage::new(&bytes)).unwrap();
    for name in &names {
        assert_eq!(fs.open(format!("/d/{name}")).unwrap().size(), name.len() as u64, "{name}");
    }
}

#[test]
fn names_need_not_be_text() {
    let (_built, listing) = build(&Archive::new().member(b'0', b"a\xff\x01\nb", b"1", |_| {}).finish());
    assert_eq!(listing[&b"/a\xff\x01\nb"[..]].kind, Kind::File(b"1".to_vec()));
}

#[test]
fn the_same_archive_gives_the_same_bytes() {
    let tar = Archive::new().file("a/b", &[3; 9000]).hard_link("c", "a/b").symlink("d", "c").finish();
    let (first, _) = build(&tar);
    let (second, _) = build(&tar);
    assert_eq!(fs::read(first.image).unwrap(), fs::read(second.image).unwrap());
}

#[test]
fn gzip_and_zstd_are_unpacked_and_other_compression_named() {
    use std::io::Write;
    let tar = Archive::new().file("a", b"1").finish();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&tar).unwrap();
    let gz = gz.finish().unwrap();
    assert_eq!(build(&gz).1, build(&tar).1);
    let mut damaged = gz.clone();
    let checksum = damaged.len() - 6;
    damaged[checksum] ^= 1;
    assert_eq!(build_error(&damaged), "cannot read the archive");
    assert_eq!(build_error(&gz[..gz.len() - 20]), "the archive is truncated after `a`");
    let zst = zstd::encode_all(&tar[..], 3).unwrap();
    assert_eq!(build(&zst).1, build(&tar).1);
    assert_eq!(build_error(&zst[..zst.len() - 9]), "the archive is truncated after `start of the archive`");
    assert!(build_error(b"BZh91234567890").contains("compressed with bzip2"));
}

#[test]
fn long_runs_of_zeros_take_no_space_on_the_host() {
    let mut data = vec![0; 8 << 20];
    data[5 << 20] = 1;
    let (built, listing) = build(&Archive::new().file("zeros", &data).finish());
    assert_eq!(kind(&listing, "/zeros"), &Kind::File(data));
    let meta = fs::metadata(&built.image).unwrap();
    assert!(meta.blocks() * 512 < 1 << 20, "{} bytes allocated", meta.blocks() * 512);
}
