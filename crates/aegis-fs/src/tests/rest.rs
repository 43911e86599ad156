//! A guest that is saved and goes on.

use std::fs;

use super::kernel::{Kernel, ROOT, Told, op, scratch, text, words};
use crate::{Directory, SavedError};

#[tokio::test]
async fn nodes_and_open_files_outlive_the_process() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let body = [words(&[0o755, 0]), text("d")].concat();
    kernel.call(op::MKDIR, ROOT, &body).await.unwrap();
    let d = kernel.look_up(ROOT, "d").await.unwrap();
    let (kept, kept_handle) = kernel.create(d, "kept", 0o644).await.unwrap();
    kernel.write(kept, kept_handle, 0, b"before").await.unwrap();
    let (gone, gone_handle) = kernel.create(d, "gone", 0o644).await.unwrap();
    kernel.call(op::UNLINK, d, &text("gone")).await.unwrap();
    let (changed, _) = kernel.create(d, "changed", 0o644).await.unwrap();
    let (removed, _) = kernel.create(d, "removed", 0o644).await.unwrap();
    let tables = kernel.leave().await.save().unwrap();

    fs::write(dir.path().join("d/changed"), "by the host").unwrap();
    fs::remove_file(dir.path().join("d/removed")).unwrap();
    let again = Directory::reopen(dir.path(), false, &tables).unwrap();
    let mut kernel = Kernel::of(again).await;
    // Everything that happened in between.
    kernel.hears(vec![Told::Node(changed), Told::Name(d, "removed".to_owned()), Told::Node(d)]).await;
    assert_eq!(kernel.write(kept, kept_handle, 6, b" and after").await, Ok(10));
    assert_eq!(kernel.read(kept, kept_handle, 0, 99).await.unwrap(), b"before and after");
    assert_eq!(kernel.look_up(d, "kept").await, Ok(kept));
    assert_eq!(kernel.content(changed).await.unwrap(), b"by the host");
    assert_eq!(kernel.read(gone, gone_handle, 0, 9).await, Err(libc::ESTALE));
    assert_eq!(kernel.attributes(removed).await, Err(libc::ESTALE));
    let (new, new_handle) = kernel.create(d, "new", 0o644).await.unwrap();
    assert!(
        ![kept, gone, changed, removed].contains(&new) && new_handle > gone_handle,
        "numbers are not reused"
    );
}

#[tokio::test]
async fn a_name_that_was_missing_is_told_when_it_came_meanwhile() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    for name in ["came", "made", "missing"] {
        assert_eq!(kernel.look_up(ROOT, name).await, Err(libc::ENOENT));
    }
    kernel.create(ROOT, "made", 0o644).await.unwrap();
    let tables = kernel.leave().await.save().unwrap();
    fs::write(dir.path().join("came"), "").unwrap();
    let mut kernel = Kernel::of(Directory::reopen(dir.path(), false, &tables).unwrap()).await;
    kernel.hears(vec![Told::Name(ROOT, "came".to_owned())]).await;
    assert_eq!(kernel.heard().await, []);
}

#[tokio::test]
async fn a_file_in_the_place_of_another_is_not_taken_for_it() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let (node, handle) = kernel.create(ROOT, "f", 0o644).await.unwrap();
    let tables = kernel.leave().await.save().unwrap();
    fs::remove_file(dir.path().join("f")).unwrap();
    fs::write(dir.path().join("f"), "another").unwrap();
    let mut kernel = Kernel::of(Directory::reopen(dir.path(), false, &tables).unwrap()).await;
    assert_eq!(kernel.read(node, handle, 0, 9).await, Err(libc::ESTALE));
    let found = kernel.look_up(ROOT, "f").await.unwrap();
    assert_ne!(found, node);
    assert_eq!(kernel.content(found).await.unwrap(), b"another");
}

#[test]
fn damaged_tables_are_refused() {
    let dir = scratch();
    let tables = Directory::open(dir.path(), false).unwrap().save().unwrap();
    for at in 0..tables.len() {
        let mut damaged = tables.clone();
        damaged[at] ^= 1;
        let refused = Directory::reopen(dir.path(), false, &damaged).err();
        // The number of the format comes after its name.
        let version = at == 7;
        assert!(matches!(refused, Some(SavedError::Version)) == version, "{at}: {refused:?}");
        assert!(matches!(refused, Some(SavedError::Damaged)) != version, "{at}: {refused:?}");
    }
    for length in 0..tables.len() {
        assert!(Directory::reopen(dir.path(), false, &tables[..length]).is_err());
    }
    let elsewhere = dir.path().join("none");
    assert!(matches!(Directory::reopen(&elsewhere, false, &tables), Err(SavedError::Directory(_))));
}

#[tokio::test]
async fn an_open_file_that_was_moved_meanwhile_goes_on() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let (moved, handle) = kernel.create(ROOT, "f", 0o644).await.unwrap();
    kernel.write(moved, handle, 0, b"before").await.unwrap();
    let (replaced, replaced_handle) = kernel.create(ROOT, "g", 0o644).await.unwrap();
    let (gone, _) = kernel.create(ROOT, "gone", 0o644).await.unwrap();
    let tables = kernel.leave().await.save().unwrap();

    // Over another one, and into a directory that the guest has never seen.
    fs::rename(dir.path().join("f"), dir.path().join("g")).unwrap();
    fs::create_dir_all(dir.path().join("new/below")).unwrap();
    fs::rename(dir.path().join("gone"), dir.path().join("new/below/gone")).unwrap();
    let mut kernel = Kernel::of(Directory::reopen(dir.path(), false, &tables).unwrap()).await;
    assert_eq!(kernel.write(moved, handle, 6, b" and after").await, Ok(10));
    assert_eq!(kernel.read(moved, handle, 0, 99).await.unwrap(), b"before and after");
    let told = ["f", "g", "gone"].map(|name| Told::Name(ROOT, name.to_owned()));
    kernel.hears(told.to_vec()).await;
    assert_eq!(kernel.look_up(ROOT, "g").await, Ok(moved));
    assert_eq!(kernel.read(replaced, replaced_handle, 0, 9).await, Err(libc::ESTALE));
    assert_eq!(kernel.attributes(gone).await.unwrap().0, 0);

    // The directories that lead to it are numbered like others, and stay while they do.
    let below = kernel.walk("new/below").await.unwrap();
    kernel.send(op::FORGET, below, &1_u64.to_le_bytes()).await;
    assert_eq!(kernel.attributes(gone).await.unwrap().0, 0);
    kernel.send(op::FORGET, gone, &1_u64.to_le_bytes()).await;
    assert_eq!(kernel.attributes(below).await, Err(libc::ESTALE));
    let tables = kernel.leave().await.save().unwrap();
    let mut kernel = Kernel::of(Directory::reopen(dir.path(), false, &tables).unwrap()).await;
    assert_eq!(kernel.read(moved, handle, 0, 99).await.unwrap(), b"before and after");
}

#[tokio::test]
async fn whoever_is_in_a_directory_that_was_moved_meanwhile_stays_there() {
    let dir = scratch();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    let mut kernel = Kernel::mount(dir.path()).await;
    let a = kernel.look_up(ROOT, "a").await.unwrap();
    let b = kernel.look_up(a, "b").await.unwrap();
    let (file, handle) = kernel.create(b, "f", 0o644).await.unwrap();
    let tables = kernel.leave().await.save().unwrap();
    fs::create_dir(dir.path().join("c")).unwrap();
    fs::rename(dir.path().join("a/b"), dir.path().join("c/d")).unwrap();
    let directory = Directory::reopen(dir.path(), false, &tables).unwrap();
    // As by a look at its old name: it has no other.
    directory.table().unname(a, c"b");
    let mut kernel = Kernel::of(directory).await;
    assert_eq!(kernel.write(file, handle, 0, b"there").await, Ok(5));
    assert_eq!(kernel.list(b, 4096).await.unwrap().len(), 3, "itself, the one above, and the file");
    kernel.create(b, "new", 0o644).await.unwrap();
    assert_eq!(fs::read(dir.path().join("c/d/f")).unwrap(), b"there");
    assert!(dir.path().join("c/d/new").exists());
    assert_eq!(kernel.walk("c/d").await, Ok(b));
}

#[tokio::test]
async fn what_was_moved_meanwhile_is_looked_for_once() {
    let dir = scratch();
    let mut kernel = Kernel::mount(dir.path()).await;
    let (deleted, _) = kernel.create(ROOT, "deleted", 0o644).await.unwrap();
    let (linked, _) = kernel.create(ROOT, "linked", 0o644).await.unwrap();
    let (late, _) = kernel.create(ROOT, "late", 0o644).await.unwrap();
    let tables = kernel.leave().await.save().unwrap();
    fs::remove_file(dir.path().join("deleted")).unwrap();
    for at in 0..20 {
        fs::hard_link(dir.path().join("linked"), dir.path().join(format!("linked{at}"))).unwrap();
    }
    fs::remove_file(dir.path().join("linked")).unwrap();
    let mut kernel = Kernel::of(Directory::reopen(dir.path(), false, &tables).unwrap()).await;
    // Not for something that the guest has learned of since.
    fs::write(dir.path().join("new"), "").unwrap();
    let new = kernel.look_up(ROOT, "new").await.unwrap();
    fs::rename(dir.path().join("new"), dir.path().join("newer")).unwrap();
    assert_eq!(kernel.attributes(new).await, Err(libc::ESTALE));
    assert!(!kernel.directory.searched.is_completed());
    assert_eq!(kernel.attributes(deleted).await, Err(libc::ESTALE));
    assert_eq!(kernel.attributes(linked).await.unwrap().2, 20);
    assert!(
        kernel.directory.table().node(linked).unwrap().names.len() <= 2,
        "the old one, and one that is right"
    );
    // Nobody looks any more, whatever is asked for.
    fs::rename(dir.path().join("late"), dir.path().join("later")).unwrap();
    assert_eq!(kernel.attributes(late).await, Err(libc::ESTALE));
    assert_eq!(kernel.attributes(deleted).await, Err(libc::ESTALE));
}

#[tokio::test]
async fn what_the_host_changes_afterwards_is_told_as_before() {
    let dir = scratch();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/f"), "one").unwrap();
    let mut kernel = Kernel::mount(dir.path()).await;
    let f = kernel.walk("d/f").await.unwrap();
    let tables = kernel.leave().await.save().unwrap();
    fs::write(dir.path().join("d/f"), "while it was saved").unwrap();
    let mut kernel = Kernel::of(Directory::reopen(dir.path(), false, &tables).unwrap()).await;
    kernel.hears(vec![Told::Node(f)]).await;
    // It has not asked for anything since, because it remembers everything.
    fs::write(dir.path().join("d/f"), "afterwards").unwrap();
    kernel.hears(vec![Told::Node(f)]).await;
}
