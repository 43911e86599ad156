//! Images from archives.

use std::path::Path;

use aegis_e2e::Aegis;
use tar::{Builder, EntryType, Header};

fn header(kind: EntryType, mode: u32, owner: (u64, u64), size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner.0);
    header.set_gid(owner.1);
    header.set_mtime(1_000_000_000);
    header.set_size(size);
    header
}

/// A root file system with one of everything, around the static busybox of the base image.
fn archive(path: &Path, busybox: &[u8]) {
    let mut tar = Builder::new(std::fs::File::create(path).unwrap());
    for dir in ["bin/", "dev/", "proc/", "sys/", "tmp/", "run/", "etc/", "root/"] {
        tar.append_data(&mut header(EntryType::Directory, 0o755, (0, 0), 0), dir, &[][..]).unwrap();
    }
    tar.append_data(
        &mut header(EntryType::Regular, 0o755, (0, 0), busybox.len() as u64),
        "bin/busybox",
        busybox,
    )
    .unwrap();
    for applet in ["sh", "stat", "cat", "ls", "readlink"] {
        tar.append_link(
            &mut header(EntryType::Symlink, 0o777, (0, 0), 0),
            format!("bin/{applet}"),
            "busybox",
        )
        .unwrap();
    }
    let text = b"owned\n";
    tar.append_data(
        &mut header(EntryType::Regular, 0o4751, (1000, 1234), text.len() as u64),
        "etc/owned",
        &text[..],
    )
    .unwrap();
    tar.append_link(&mut header(EntryType::Link, 0o4751, (1000, 1234), 0), "etc/linked", "etc/owned")
        .unwrap();
    let mut device = header(EntryType::Char, 0o640, (0, 7), 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(5).unwrap();
    tar.append_data(&mut device, "etc/zero", &[][..]).unwrap();
    tar.append_data(&mut header(EntryType::Fifo, 0o600, (0, 0), 0), "etc/fifo", &[][..]).unwrap();
    let big: Vec<u8> = (0..3_000_000u32).flat_map(|i| (i as u8 ^ (i >> 8) as u8).to_ne_bytes()).collect();
    tar.append_data(&mut header(EntryType::Regular, 0o600, (0, 0), big.len() as u64), "root/big", &big[..])
        .unwrap();
    tar.finish().unwrap();
}

#[test]
fn an_imported_archive_keeps_owners_modes_links_and_devices() {
    let aegis = Aegis::new();
    let busybox = aegis.aegis(["run", "--", "cat", "/bin/busybox"]).expect_ok().stdout;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.tar");
    archive(&path, &busybox);
    let path = path.to_str().unwrap();
    aegis.aegis(["image", "import", path, "--name", "tiny:1"]).expect_ok();
    let list = aegis.aegis(["image", "list"]).expect_ok().out();
    assert!(list.contains("tiny:1") && list.contains("base"), "{list}");

    let script = "stat -c '%a %u %g %F %h' /etc/owned /etc/linked /etc/zero /etc/fifo; cat /etc/linked; \
                  readlink /bin/sh; stat -c '%t %T' /etc/zero; stat -c '%s %Y' /root/big";
    let output = aegis.aegis(["run", "--image", "tiny:1", "--", "sh", "-c", script]).expect_ok().out();
    let expected = "4751 1000 1234 regular file 2\n4751 1000 1234 regular file 2\n\
                    640 0 7 character special file 1\n600 0 0 fifo 1\nowned\nbusybox\n1 5\n3000000 1000000000\n";
    assert_eq!(output, expected);
}

#[test]
fn archives_that_are_none_are_refused_and_leave_nothing() {
    let aegis = Aegis::new();
    aegis.aegis(["up"]).expect_ok();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.tar");
    std::fs::write(&path, vec![b'x'; 5000]).unwrap();
    let refused = aegis.aegis(["image", "import", path.to_str().unwrap(), "--name", "bad"]);
    assert_ne!(refused.code, Some(0));
    assert!(refused.err().starts_with("error: "), "{}", refused.err());
    aegis.aegis(["image", "import", "/no/such/file", "--name", "bad"]).expect_code(1);
    assert!(!aegis.aegis(["image", "list"]).expect_ok().out().contains("bad"));
}
