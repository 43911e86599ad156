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
        assert!(matches!(Directory::reopen(dir.path(), false, &damaged), Err(SavedError::Damaged)), "{at}");
    }
    for length in 0..tables.len() {
        assert!(Directory::reopen(dir.path(), false, &tables[..length]).is_err());
    }
    let elsewhere = dir.path().join("none");
    assert!(matches!(Directory::reopen(&elsewhere, false, &tables), Err(SavedError::Directory(_))));
}
