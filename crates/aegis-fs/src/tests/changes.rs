//! What others change.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aegis_proto::fuse::TOLD_SECONDS;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::kernel::{DEADLINE, Kernel, ROOT, Told, op, scratch, text, words};
use crate::Directory;

#[tokio::test]
async fn the_guest_is_told_of_what_the_host_changes() {
    let dir = scratch();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/f"), "one").unwrap();
    let mut kernel = Kernel::mount(dir.path()).await;
    let d = kernel.look_up(ROOT, "d").await.unwrap();
    let f = kernel.look_up(d, "f").await.unwrap();
    assert_eq!(kernel.look_up(d, "new").await, Err(libc::ENOENT));
    fs::write(dir.path().join("d/f"), "two").unwrap();
    kernel.hears(vec![Told::Node(f)]).await;
    fs::write(dir.path().join("d/new"), "").unwrap();
    kernel.hears(vec![Told::Name(d, "new".to_owned()), Told::Node(d)]).await;
    fs::rename(dir.path().join("d/new"), dir.path().join("d/f")).unwrap();
    kernel.hears(vec![Told::Name(d, "f".to_owned())]).await;
    assert_ne!(kernel.look_up(d, "f").await.unwrap(), f, "another file");
    fs::remove_file(dir.path().join("d/f")).unwrap();
    kernel.hears(vec![Told::Name(d, "f".to_owned())]).await;
}

#[tokio::test]
async fn the_guest_is_not_told_of_what_it_does_itself() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let body = [words(&[0o755, 0]), text("d")].concat();
    kernel.call(op::MKDIR, ROOT, &body).await.unwrap();
    let d = kernel.look_up(ROOT, "d").await.unwrap();
    for at in 0..50 {
        let name = format!("f{at}");
        let (node, handle) = kernel.create(d, &name, 0o644).await.unwrap();
        kernel.write(node, handle, 0, b"content").await.unwrap();
        kernel.release(node, handle).await;
        kernel.rename((d, &name), (d, &format!("g{at}"))).await.unwrap();
    }
    for at in 0..25 {
        kernel.call(op::UNLINK, d, &text(&format!("g{at}"))).await.unwrap();
    }
    let heard = kernel.heard().await;
    // One that is looked at while it happens may be told; it does no harm.
    assert!(heard.len() < 20, "{heard:?}");
}

#[tokio::test]
async fn without_watches_nothing_is_believed_for_long() {
    let dir = scratch();
    fs::write(dir.path().join("f"), "one").unwrap();
    let directory = Directory::open_with_watches(dir.path(), 0).unwrap();
    let mut kernel = Kernel::of(directory).await;
    let body = kernel.call(op::LOOKUP, ROOT, &text("f")).await.unwrap();
    let valid = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
    assert_eq!((valid(16), valid(24)), (1, 1), "seconds");
    let f = u64::from_le_bytes(body[..8].try_into().unwrap());
    let opened = kernel.call(op::OPEN, f, &words(&[0, 0])).await.unwrap();
    assert_eq!(opened[8] & 2, 0, "what is cached is not kept");
    // Its listing is, so that is looked at.
    fs::write(dir.path().join("new"), "").unwrap();
    kernel.hears(vec![Told::Node(ROOT)]).await;
    let mut watched = Kernel::mount(dir.path()).await;
    let body = watched.call(op::LOOKUP, ROOT, &text("f")).await.unwrap();
    assert!(u64::from_le_bytes(body[16..24].try_into().unwrap()) > 60);
}

#[tokio::test]
async fn what_does_not_fit_is_told_later() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let names: Vec<String> = (0..5000).map(|number| format!("f{number}")).collect();
    for name in &names {
        fs::write(dir.path().join(name), "").unwrap();
        kernel.look_up(ROOT, name).await.unwrap();
    }
    for name in &names {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    // Nobody takes anything meanwhile: the session runs in this thread.
    let deadline = Instant::now() + DEADLINE;
    while !kernel.directory.missed.load(Ordering::Relaxed) {
        assert!(Instant::now() < deadline, "more is told than fits");
        std::thread::sleep(Duration::from_millis(5));
    }
    kernel.hears(names.into_iter().map(|name| Told::Name(ROOT, name)).collect()).await;
}

#[tokio::test]
async fn a_new_directory_is_known_to_be_empty() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let made = kernel.call(op::MKDIR, ROOT, &[words(&[0o755, 0]), text("d")].concat()).await.unwrap();
    let number = |at: usize| u64::from_le_bytes(made[at..at + 8].try_into().unwrap());
    assert_eq!(number(24), TOLD_SECONDS, "its attributes are valid for so long");
    // Without having asked for anything in it.
    fs::write(dir.path().join("d/new"), "").unwrap();
    kernel.hears(vec![Told::Name(number(0), "new".to_owned())]).await;
    let directory = Directory::open_with_watches(dir.path(), 1).unwrap();
    let mut kernel = Kernel::of(directory).await;
    kernel.look_up(ROOT, "d").await.unwrap();
    let made = kernel.call(op::MKDIR, ROOT, &[words(&[0o755, 0]), text("e")].concat()).await.unwrap();
    assert_eq!(made[24..32], 1_u64.to_le_bytes(), "nobody would tell");
}

#[tokio::test]
async fn what_the_host_writes_through_a_mapping_is_told_when_it_is_closed() {
    let dir = scratch();
    let path = dir.path().join("f");
    fs::write(&path, "one and more").unwrap();
    let mut kernel = Kernel::mount(dir.path()).await;
    let f = kernel.look_up(ROOT, "f").await.unwrap();
    assert_eq!(kernel.content(f).await.unwrap(), b"one and more");
    // A process of its own, because there is no safe mapping. It writes in no other way.
    let write = "import mmap, sys; f = open(sys.argv[1], 'r+b'); mmap.mmap(f.fileno(), 0)[0:3] = b'two'";
    assert!(Command::new("python3").args(["-c", write]).arg(&path).status().unwrap().success());
    kernel.hears(vec![Told::Node(f)]).await;
    assert_eq!(kernel.content(f).await.unwrap(), b"two and more");
}

#[test]
fn a_directory_that_cannot_be_watched_is_the_only_one() {
    // In a thread of its own, which may do no more than any user, and so is refused a watch of what it cannot read.
    let test = std::thread::spawn(|| {
        let mut sets = capabilities(None).unwrap();
        sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        set_capabilities(None, sets).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(one_directory_is_not_watched());
    });
    test.join().unwrap();
}

async fn one_directory_is_not_watched() {
    let dir = scratch();
    let blind = dir.path().join("blind");
    for name in ["blind", "seen"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("f"), "one").unwrap();
    }
    fs::set_permissions(&blind, fs::Permissions::from_mode(0o300)).unwrap();
    let mut kernel = Kernel::mount(dir.path()).await;
    let mut files = Vec::new();
    for (name, validity) in [("blind", 1), ("seen", 3600)] {
        let directory = kernel.look_up(ROOT, name).await.unwrap();
        let body = kernel.call(op::LOOKUP, directory, &text("f")).await.unwrap();
        let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        assert_eq!((number(16), number(24)), (validity, validity), "seconds, of {name}");
        files.push(number(0));
    }
    fs::write(dir.path().join("seen/f"), "two").unwrap();
    kernel.hears(vec![Told::Node(files[1])]).await;
    // So that it can be removed.
    fs::set_permissions(&blind, fs::Permissions::from_mode(0o700)).unwrap();
}
