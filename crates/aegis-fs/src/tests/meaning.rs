//! What requests do.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};

use super::kernel::{Kernel, ROOT, op, scratch, text, words};
use crate::Directory;

#[tokio::test]
async fn files_are_made_written_and_read_on_both_sides() {
    let dir = scratch();
    fs::write(dir.path().join("host"), "from the host").unwrap();
    let mut kernel = Kernel::mount(dir.path()).await;
    let host = kernel.look_up(ROOT, "host").await.unwrap();
    assert_eq!(kernel.content(host).await.unwrap(), b"from the host");
    let (node, handle) = kernel.create(ROOT, "guest", 0o640).await.unwrap();
    let long = vec![7; 300_000];
    assert_eq!(kernel.write(node, handle, 0, &long).await, Ok(300_000));
    assert_eq!(kernel.read(node, handle, 299_990, 100).await.unwrap(), [7; 10]);
    assert_eq!(kernel.attributes(node).await, Ok((300_000, 0o100640, 1)));
    assert_eq!(fs::read(dir.path().join("guest")).unwrap(), long);
    assert_eq!(kernel.look_up(ROOT, "missing").await, Err(libc::ENOENT));
    assert_eq!(kernel.look_up(host, "x").await, Err(libc::ENOTDIR));
}

#[tokio::test]
async fn an_open_file_outlives_its_name() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let (node, handle) = kernel.create(ROOT, "f", 0o644).await.unwrap();
    kernel.call(op::UNLINK, ROOT, &text("f")).await.unwrap();
    assert_eq!(kernel.write(node, handle, 0, b"still here").await, Ok(10));
    assert_eq!(kernel.attributes(node).await, Ok((10, 0o100644, 0)));
    assert_eq!(kernel.read(node, handle, 0, 100).await.unwrap(), b"still here");
    kernel.release(node, handle).await;
    assert_eq!(kernel.attributes(node).await, Err(libc::ESTALE));
    assert_eq!(kernel.read(node, handle, 0, 100).await, Err(libc::EBADF));
}

#[tokio::test]
async fn names_move_with_what_they_name() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let body = [words(&[0o755, 0]), text("a")].concat();
    kernel.call(op::MKDIR, ROOT, &body).await.unwrap();
    let a = kernel.look_up(ROOT, "a").await.unwrap();
    let (old, old_handle) = kernel.create(ROOT, "old", 0o644).await.unwrap();
    kernel.write(old, old_handle, 0, b"old").await.unwrap();
    let (new, handle) = kernel.create(a, "new", 0o644).await.unwrap();
    kernel.write(new, handle, 0, b"new").await.unwrap();
    kernel.rename((a, "new"), (ROOT, "old")).await.unwrap();
    assert_eq!(kernel.look_up(ROOT, "old").await, Ok(new), "the same node under another name");
    assert_eq!(kernel.read(old, old_handle, 0, 9).await.unwrap(), b"old", "open, though replaced");
    kernel.rename((ROOT, "a"), (ROOT, "b")).await.unwrap();
    assert_eq!(
        kernel.create(a, "in b", 0o600).await.map(|_| ()),
        Ok(()),
        "a directory that moved is the same"
    );
    assert!(dir.path().join("b/in b").exists());
    let link = [&new.to_le_bytes()[..], &text("second")].concat();
    kernel.call(op::LINK, ROOT, &link).await.unwrap();
    assert_eq!(kernel.attributes(new).await.unwrap().2, 2);
    kernel.call(op::UNLINK, ROOT, &text("old")).await.unwrap();
    assert_eq!(kernel.content(new).await.unwrap(), b"new", "by its other name");
    assert_eq!(kernel.call(op::RMDIR, ROOT, &text("b")).await, Err(libc::ENOTEMPTY));
}

#[tokio::test]
async fn a_directory_is_read_in_pieces_while_names_go() {
    let dir = scratch();
    for at in 0..500 {
        fs::write(dir.path().join(format!("file-{at}")), "").unwrap();
    }
    let mut kernel = Kernel::mount(dir.path()).await;
    let mut names = kernel.list(ROOT, 4096).await.unwrap();
    names.retain(|name| name.starts_with("file-"));
    assert_eq!(names.len(), 500);
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 500);
    // As a recursive removal does it.
    let mut left = kernel.list(ROOT, 2048).await.unwrap();
    while left.len() > 2 {
        for name in left.iter().filter(|name| name.starts_with("file-")) {
            kernel.call(op::UNLINK, ROOT, &text(name)).await.unwrap();
        }
        left = kernel.list(ROOT, 2048).await.unwrap();
    }
}

#[tokio::test]
async fn the_guest_resolves_its_own_links_and_has_no_dangerous_bits() {
    let dir = scratch();
    symlink("/etc/passwd", dir.path().join("link")).unwrap();
    let mut kernel = Kernel::mount(dir.path()).await;
    let link = kernel.look_up(ROOT, "link").await.unwrap();
    assert_eq!(kernel.call(op::READLINK, link, &[]).await.unwrap(), b"/etc/passwd");
    assert_eq!(kernel.open(link, libc::O_RDONLY).await, Err(libc::EINVAL), "we open no link");
    let body = [text("made"), text("../outside")].concat();
    kernel.call(op::SYMLINK, ROOT, &body).await.unwrap();
    assert_eq!(fs::read_link(dir.path().join("made")).unwrap().to_str(), Some("../outside"));
    let (node, _) = kernel.create(ROOT, "program", 0o6755).await.unwrap();
    let set = [words(&[1, 0]), vec![0; 60], words(&[0o104_777]), vec![0; 16]].concat();
    kernel.call(op::SETATTR, node, &set).await.unwrap();
    assert_eq!(fs::metadata(dir.path().join("program")).unwrap().permissions().mode() & 0o7777, 0o777);
    for (kind, refused) in [(libc::S_IFCHR, true), (libc::S_IFBLK, true), (libc::S_IFIFO, false)] {
        let name = format!("node-{kind}");
        let body = [words(&[kind | 0o666, 0x103, 0, 0]), text(&name)].concat();
        assert_eq!(kernel.call(op::MKNOD, ROOT, &body).await.is_err(), refused);
        assert_eq!(dir.path().join(name).exists(), !refused);
    }
    let pipe = dir.path().join(format!("node-{}", libc::S_IFIFO));
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    let pipe = kernel.look_up(ROOT, &format!("node-{}", libc::S_IFIFO)).await.unwrap();
    assert_eq!(kernel.open(pipe, libc::O_RDONLY).await, Err(libc::EINVAL), "a pipe would hold us up");
}

#[tokio::test]
async fn everything_looks_as_if_root_owned_it() {
    let dir = scratch();
    fs::write(dir.path().join("f"), "").unwrap();
    let owner = fs::metadata(dir.path().join("f")).unwrap().uid();
    let mut kernel = Kernel::mount(dir.path()).await;
    let node = kernel.look_up(ROOT, "f").await.unwrap();
    let body = kernel.call(op::GETATTR, node, &[0; 16]).await.unwrap();
    assert_eq!(body[16 + 68..16 + 76], [0; 8]);
    // The guest believes that it was given away.
    let set = [words(&[2 | 4, 0]), vec![0; 64], words(&[0, 1000, 1000, 0])].concat();
    kernel.call(op::SETATTR, node, &set[..88]).await.unwrap();
    assert_eq!(fs::metadata(dir.path().join("f")).unwrap().uid(), owner);
}

#[tokio::test]
async fn extended_attributes_are_the_users() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let (node, _) = kernel.create(ROOT, "f", 0o644).await.unwrap();
    let set = |name: &str, value: &str| {
        [words(&[u32::try_from(value.len()).unwrap(), 0]), text(name), value.as_bytes().to_vec()].concat()
    };
    let get = |name: &str| [words(&[100, 0]), text(name)].concat();
    // Not every file system has them.
    if kernel.call(op::SETXATTR, node, &set("user.a", "b")).await.is_ok() {
        assert_eq!(kernel.call(op::GETXATTR, node, &get("user.a")).await.unwrap(), b"b");
    }
    assert_eq!(
        kernel.call(op::SETXATTR, node, &set("security.capability", "x")).await,
        Err(libc::EOPNOTSUPP)
    );
    assert_eq!(kernel.call(op::GETXATTR, node, &get("trusted.x")).await, Err(libc::ENODATA));
}

#[tokio::test]
async fn nothing_changes_in_what_is_read_only() {
    let dir = scratch();
    fs::write(dir.path().join("f"), "kept").unwrap();
    let mut kernel = Kernel::of(Directory::open(dir.path(), true).unwrap()).await;
    let node = kernel.look_up(ROOT, "f").await.unwrap();
    assert_eq!(kernel.content(node).await.unwrap(), b"kept");
    let link = [&node.to_le_bytes()[..], &text("l")].concat();
    let changes: [(u32, u64, Vec<u8>); 8] = [
        (op::CREATE, ROOT, [words(&[0o102, 0o644, 0, 0]), text("new")].concat()),
        (op::MKDIR, ROOT, [words(&[0o755, 0]), text("d")].concat()),
        (op::MKNOD, ROOT, [words(&[libc::S_IFREG | 0o644, 0, 0, 0]), text("n")].concat()),
        (op::SYMLINK, ROOT, [text("s"), text("t")].concat()),
        (op::UNLINK, ROOT, text("f")),
        (op::RENAME, ROOT, [&ROOT.to_le_bytes()[..], &text("f"), &text("g")].concat()),
        (op::LINK, ROOT, link),
        (op::SETATTR, node, [words(&[1, 0]), vec![0; 80]].concat()),
    ];
    for (operation, node, body) in changes {
        assert_eq!(kernel.call(operation, node, &body).await, Err(libc::EROFS), "{operation}");
    }
    for flags in [libc::O_RDWR, libc::O_WRONLY, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(kernel.open(node, flags).await, Err(libc::EROFS));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_file_without_a_name_may_get_one() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let flags = (libc::O_TMPFILE | libc::O_RDWR).cast_unsigned();
    let body = [words(&[flags, 0o640, 0, 0]), text("?")].concat();
    let made = kernel.call(op::TMPFILE, ROOT, &body).await;
    // Not every file system has them.
    let Ok(made) = made else { return assert_eq!(made, Err(libc::EOPNOTSUPP)) };
    let number = |at: usize| u64::from_le_bytes(made[at..at + 8].try_into().unwrap());
    let (node, handle) = (number(0), number(128));
    assert_eq!(kernel.write(node, handle, 0, b"content").await, Ok(7));
    assert_eq!(kernel.attributes(node).await, Ok((7, 0o100640, 0)));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let link = [&node.to_le_bytes()[..], &text("named")].concat();
    kernel.call(op::LINK, ROOT, &link).await.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("named")).unwrap(), "content");
    assert_eq!(kernel.look_up(ROOT, "named").await, Ok(node));
    kernel.release(node, handle).await;
    assert_eq!(kernel.content(node).await.unwrap(), b"content");
}
