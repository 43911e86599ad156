//! A guest that wants out.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::kernel::{Kernel, ROOT, op, scratch, text, words};
use crate::{SessionError, remove_tree, usage};

const SECRET: &[u8] = b"not for guests";

#[tokio::test]
async fn names_are_one_component() {
    let dir = scratch();
    fs::write(dir.path().join("secret"), SECRET).unwrap();
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let mut kernel = Kernel::mount(&inside).await;
    for name in ["..", ".", "", "../secret", "/etc/passwd", "a/b", "./x"] {
        assert_eq!(kernel.look_up(ROOT, name).await, Err(libc::EINVAL), "{name:?}");
        assert_eq!(kernel.create(ROOT, name, 0o644).await, Err(libc::EINVAL), "{name:?}");
        let mkdir = [words(&[0o755, 0]), text(name)].concat();
        for (operation, body) in [(op::MKDIR, mkdir), (op::UNLINK, text(name)), (op::RMDIR, text(name))] {
            assert_eq!(kernel.call(operation, ROOT, &body).await, Err(libc::EINVAL), "{operation} {name:?}");
        }
        assert_eq!(kernel.rename((ROOT, name), (ROOT, "x")).await, Err(libc::EINVAL));
        assert_eq!(kernel.rename((ROOT, "x"), (ROOT, name)).await, Err(libc::EINVAL));
    }
    assert_eq!(fs::read(dir.path().join("secret")).unwrap(), SECRET);
}

#[tokio::test]
async fn no_link_leads_out() {
    let dir = scratch();
    fs::write(dir.path().join("secret"), SECRET).unwrap();
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    symlink("..", inside.join("up")).unwrap();
    symlink("../secret", inside.join("link")).unwrap();
    let mut kernel = Kernel::mount(&inside).await;
    let up = kernel.look_up(ROOT, "up").await.unwrap();
    assert_eq!(kernel.look_up(up, "secret").await, Err(libc::ENOTDIR));
    assert_eq!(kernel.create(up, "new", 0o644).await, Err(libc::ENOTDIR));
    let link = kernel.look_up(ROOT, "link").await.unwrap();
    assert_eq!(kernel.open(link, libc::O_RDWR).await, Err(libc::EINVAL));
    // What is written to a name that is a link stays here.
    assert_eq!(kernel.create(ROOT, "link", 0o644).await, Err(libc::ESTALE));
    let hard = [&link.to_le_bytes()[..], &text("hard")].concat();
    kernel.call(op::LINK, ROOT, &hard).await.unwrap();
    assert!(inside.join("hard").is_symlink(), "the link itself got another name");
    assert_eq!(fs::read(dir.path().join("secret")).unwrap(), SECRET);
}

#[tokio::test]
async fn forged_numbers_and_cut_messages_are_answered() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let (node, handle) = kernel.create(ROOT, "f", 0o644).await.unwrap();
    // Those after which nobody waits, and the one that ends the file system.
    let silent = [op::FORGET, op::RELEASE, 36, 38, 41, 42];
    for operation in (0..op::LAST).filter(|operation| !silent.contains(operation)) {
        for forged in [0, node + 1000, u64::MAX] {
            let body = [&u64::MAX.to_le_bytes()[..], &[0xff; 120]].concat();
            let _ = kernel.call(operation, forged, &body).await;
        }
        for length in 0..48 {
            let _ = kernel.call(operation, node, &vec![0xff; length]).await;
            let _ = kernel.call(operation, ROOT, &vec![0; length]).await;
        }
    }
    for operation in silent.into_iter().filter(|operation| *operation != 38) {
        for length in 0..48 {
            kernel.send(operation, u64::MAX - 1, &vec![0xfe; length]).await;
        }
    }
    // Counts that do not fit, and a name without an end.
    kernel.send(42, 0, &words(&[u32::MAX, 0])).await;
    assert!(kernel.call(op::LOOKUP, ROOT, b"no end").await.is_err());
    assert!(kernel.read(node, handle, u64::MAX, u32::MAX).await.is_err());
    assert!(kernel.write(node, handle, u64::MAX - 1, b"x").await.is_err());
    assert_eq!(kernel.write(node, handle, 0, b"works").await, Ok(5));
    // A handle is good for its own file only.
    let (other, _) = kernel.create(ROOT, "g", 0o644).await.unwrap();
    assert_eq!(kernel.read(other, handle, 0, 5).await, Err(libc::EBADF));
    assert!(fs::read_dir(dir.path()).unwrap().count() >= 2);
}

#[tokio::test]
async fn what_is_no_message_ends_the_session_and_nothing_else() {
    let dir = scratch();
    for (frame, expected) in [
        (words(&[0, 39]), "Length(39)"),
        (words(&[0, (1 << 20) + 4097]), "Length(1052673)"),
        (words(&[0, u32::MAX]), "Length(4294967295)"),
        ([words(&[1, 40]), vec![0; 36]].concat(), "Place(1)"),
        ([words(&[4_000_000_000, 40]), vec![0; 36]].concat(), "Place(4000000000)"),
    ] {
        let mut kernel = Kernel::mount(dir.path()).await;
        kernel.raw(&frame).await;
        let ended: Result<(), SessionError> = kernel.session.await.unwrap();
        assert_eq!(format!("{:?}", ended.unwrap_err()), expected);
        let mut again = Kernel::of(kernel.directory).await;
        assert_eq!(again.look_up(ROOT, "x").await, Err(libc::ENOENT));
    }
}

#[tokio::test]
async fn a_directory_that_turns_into_a_link_lets_nobody_out() {
    let dir = scratch();
    let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
    for path in [&inside, &outside, &inside.join("d")] {
        fs::create_dir(path).unwrap();
    }
    fs::write(outside.join("f"), SECRET).unwrap();
    fs::write(inside.join("d/f"), "fine").unwrap();
    symlink(&outside, inside.join("other")).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let (stop, base) = (Arc::clone(&done), inside.clone());
    let host = std::thread::spawn(move || {
        let exchange = || {
            rustix::fs::renameat_with(
                rustix::fs::CWD,
                base.join("d"),
                rustix::fs::CWD,
                base.join("other"),
                rustix::fs::RenameFlags::EXCHANGE,
            )
        };
        while !stop.load(Ordering::Relaxed) {
            exchange().unwrap();
        }
    });
    let mut kernel = Kernel::mount(&inside).await;
    let mut read = 0;
    for _ in 0..3000 {
        let Ok(node) = kernel.walk("d/f").await else { continue };
        match kernel.content(node).await {
            Ok(content) => {
                assert_eq!(content, b"fine");
                read += 1;
            }
            Err(error) => assert_eq!(error, libc::ESTALE),
        }
        let handle = kernel.open(node, libc::O_WRONLY | libc::O_TRUNC).await;
        if let Ok(handle) = handle {
            kernel.write(node, handle, 0, b"fine").await.unwrap();
            kernel.release(node, handle).await;
        }
    }
    done.store(true, Ordering::Relaxed);
    host.join().unwrap();
    assert!(read > 0, "the race was never won by the guest either");
    assert_eq!(fs::read(outside.join("f")).unwrap(), SECRET);
}

#[test]
fn readers_on_the_host_follow_nothing() {
    let dir = scratch();
    let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("big"), vec![1; 1 << 20]).unwrap();
    fs::create_dir(&inside).unwrap();
    symlink(&outside, inside.join("link")).unwrap();
    fs::write(inside.join("small"), "x").unwrap();
    fs::hard_link(inside.join("small"), inside.join("again")).unwrap();
    let counted = usage(&inside).unwrap();
    assert_eq!(counted.entries, 3);
    assert!(counted.bytes < 64 << 10, "{counted:?}");
    // Deeper than anybody can open at once, and closed by its own permissions.
    let mut deep = inside.clone();
    for _ in 0..400 {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    fs::set_permissions(inside.join("d"), std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
    symlink(&outside, dir.path().join("through")).unwrap();
    assert!(remove_tree(&dir.path().join("through/big/x")).is_err());
    remove_tree(&inside).unwrap();
    remove_tree(&inside).unwrap();
    assert!(!inside.exists());
    assert_eq!(fs::read(outside.join("big")).unwrap().len(), 1 << 20);
}
