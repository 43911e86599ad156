//! Trees there and back, and streams that lie.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use aegis_types::CopyReport;
use tar::{EntryType, Header};

use super::*;

const PLAIN: Unpacking<'static> =
    Unpacking { owners: Owners::Caller, special_bits: false, through_links: false, root: None };

fn packed(path: &Path, name: &str) -> (Vec<u8>, CopyReport) {
    let mut bytes = Vec::new();
    let report = pack(path, name.as_bytes(), false, &mut bytes).unwrap();
    (bytes, report)
}

/// A stream of raw entries: kind, path, link target, content.
fn stream(entries: &[(EntryType, &str, &str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, path, link, content) in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(*kind);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(0o4755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("a/empty")).unwrap();
    fs::create_dir(&to).unwrap();
    let long = "n".repeat(200);
    fs::write(from.join("a").join(&long), "long").unwrap();
    fs::write(from.join("a/run.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(from.join("a/run.sh"), Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(from.join("a/run.sh"), from.join("same")).unwrap();
    symlink("../nowhere", from.join("a/dangling")).unwrap();
    fs::set_permissions(from.join("a"), Permissions::from_mode(0o555)).unwrap();
    let (bytes, sent) = packed(&from, "from");
    let report = unpack(&to, &bytes[..], &Unpacking { root: Some(b"new"), ..PLAIN }).unwrap();
    fs::set_permissions(from.join("a"), Permissions::from_mode(0o755)).unwrap();
    assert!(sent.is_complete() && report.is_complete(), "{sent:?} {report:?}");
    assert_eq!((sent.entries, sent.bytes), (report.entries, report.bytes));
    let new = to.join("new");
    assert_eq!(fs::read_to_string(new.join("a").join(&long)).unwrap(), "long");
    assert_eq!(fs::read_link(new.join("a/dangling")).unwrap(), Path::new("../nowhere"));
    let (before, after) = (from.join("same").metadata().unwrap(), new.join("same").metadata().unwrap());
    assert_eq!((after.mode() & 0o7777, after.nlink()), (0o751, 2), "one file, without set-user-ID");
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    assert_eq!(new.join("a").metadata().unwrap().mode() & 0o777, 0o555);
    assert_eq!(
        new.join("a/empty").metadata().unwrap().mtime(),
        from.join("a/empty").metadata().unwrap().mtime()
    );
    assert_eq!(fs::read_dir(&new).unwrap().count(), 2, "nothing is left behind");
    fs::set_permissions(new.join("a"), Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn holes_are_not_sent_and_not_filled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(1 << 34).unwrap();
    file.write_all_at(b"middle", 5 << 30).unwrap();
    file.write_all_at(b"end", (1 << 34) - 3).unwrap();
    let (bytes, _) = packed(&path, "copy");
    assert!(bytes.len() < 1 << 20, "{}", bytes.len());
    unpack(dir.path(), &bytes[..], &PLAIN).unwrap();
    let copy = File::open(dir.path().join("copy")).unwrap();
    assert_eq!(copy.metadata().unwrap().len(), 1 << 34);
    assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20);
    let mut text = [0; 6];
    copy.read_exact_at(&mut text, 5 << 30).unwrap();
    assert_eq!(&text, b"middle");
    copy.read_exact_at(&mut text[..3], (1 << 34) - 3).unwrap();
    assert_eq!(&text[..3], b"end");
}

#[test]
fn zeros_become_holes_whatever_their_alignment() {
    let dir = tempfile::tempdir().unwrap();
    let mut content = vec![0; 300_000];
    content[1] = 1;
    content[150_000..150_010].fill(2);
    content[299_999] = 3;
    let bytes = stream(&[(EntryType::Regular, "f", "", &content)]);
    unpack(dir.path(), &bytes[..], &PLAIN).unwrap();
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), content);
}

#[test]
fn nothing_leaves_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir_all(&inside).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, inside.join("there")).unwrap();
    use EntryType as T;
    let out = outside.to_str().unwrap();
    let absolute = format!("{out}/absolute");
    let bytes = stream(&[
        (T::Regular, "../up", "", b"x"),
        (T::Regular, "a/../../up", "", b"x"),
        (T::Regular, &absolute, "", b"x"),
        (T::Symlink, "link", out, b""),
        (T::Regular, "link/through", "", b"x"),
        (T::Directory, "link/deep/er", "", b""),
        (T::Regular, "there/through", "", b"x"),
        (T::Link, "grab", "there/secret", b""),
        (T::Link, "grab", "../out/secret", b""),
        (T::Link, "grab", "link", b""),
        (T::Char, "null", "", b""),
        (T::Fifo, "pipe", "", b""),
        (T::Regular, "good", "", b"good"),
        (T::Link, "better", "good", b""),
    ]);
    let report = unpack(&inside, &bytes[..], &PLAIN).unwrap();
    assert_eq!((report.problems.len(), report.entries), (11, 3), "{report:?}");
    let mut names: Vec<_> = fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["secret"]);
    assert!(!dir.path().join("up").exists());
    names = fs::read_dir(&inside).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "better", "good", "link", "there"].map(std::ffi::OsString::from)[1..]);
    let good = inside.join("better").metadata().unwrap();
    assert_eq!((good.nlink(), good.mode() & 0o7777), (2, 0o755));
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    // Whoever trusts the links follows them.
    let bytes = stream(&[(T::Regular, "there/through", "", b"x")]);
    unpack(&inside, &bytes[..], &Unpacking { through_links: true, ..PLAIN }).unwrap();
    assert!(outside.join("through").exists());
}

#[test]
fn a_stream_that_lies_about_sizes_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let header = |kind: EntryType, size: u64| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.as_old_mut().name[0] = b'x';
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    for kind in [EntryType::GNULongName, EntryType::XHeader, EntryType::XGlobalHeader, EntryType::GNUSparse] {
        let bytes = header(kind, 1 << 40);
        assert!(unpack(dir.path(), &bytes[..], &PLAIN).is_err());
    }
    let bytes = header(EntryType::Regular, 1 << 40);
    assert!(matches!(unpack(dir.path(), &bytes[..], &PLAIN), Err(UnpackError::Stream(StreamError::Io(_)))));
    assert!(unpack(dir.path(), &b"no archive at all"[..], &PLAIN).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "an unfinished file is removed");
}

#[test]
fn a_cut_or_changed_stream_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let file = File::create(source.join("sparse")).unwrap();
    file.set_len(100_000).unwrap();
    file.write_all_at(b"x", 50_000).unwrap();
    File::create(source.join("n".repeat(150))).unwrap().write_all(b"text").unwrap();
    symlink("t".repeat(150), source.join("link")).unwrap();
    let (bytes, _) = packed(&source, "s");
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    for end in (0..bytes.len()).step_by(61) {
        assert!(unpack(&to, &bytes[..end], &PLAIN).is_err() || end > bytes.len() - 1024);
    }
    for at in (0..bytes.len()).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x15;
        // Some changes are in the content.
        let _ = unpack(&to, &changed[..], &PLAIN);
    }
}

#[test]
fn directories_are_merged_and_files_replaced() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("d/kept")).unwrap();
    fs::write(dir.path().join("d/f"), "old").unwrap();
    symlink("f", dir.path().join("d/l")).unwrap();
    use EntryType as T;
    let bytes = stream(&[
        (T::Directory, "d/", "", b""),
        (T::Regular, "d/f", "", b"new"),
        (T::Regular, "d/l", "", b"file"),
        (T::Regular, "d/kept", "", b"no"),
    ]);
    let report = unpack(dir.path(), &bytes[..], &PLAIN).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert_eq!(report.problems[0].error, "a directory is in the way");
    assert_eq!(fs::read_to_string(dir.path().join("d/f")).unwrap(), "new");
    assert_eq!(
        fs::read_to_string(dir.path().join("d/l")).unwrap(),
        "file",
        "the link is replaced, not followed"
    );
    assert!(dir.path().join("d/kept").is_dir());
}
