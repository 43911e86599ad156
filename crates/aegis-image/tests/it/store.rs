//! The image store: names, content addresses, and several importers at once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use aegis_image::{ImageError, Store};
use aegis_types::ImageName;
use tempfile::TempDir;

use super::support::Archive;

fn name(text: &str) -> ImageName {
    ImageName::parse(text).unwrap()
}

fn tar(content: &str) -> Vec<u8> {
    Archive::new().file("etc/issue", content.as_bytes()).finish()
}

fn store() -> (TempDir, Store) {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&home.path().join("data/images")).unwrap();
    (home, store)
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Directories of images.
fn images(dir: &Path) -> Vec<String> {
    files(dir).into_iter().filter(|name| name.starts_with("sha256_")).collect()
}

#[test]
fn an_imported_image_is_found_by_name_and_named_by_content() {
    let (home, store) = store();
    assert_eq!(store.resolve(&name("base")).unwrap(), None);
    let info = store.import(&name("base"), &tar("one")[..]).unwrap();
    assert_eq!(store.resolve(&name("base")).unwrap(), Some(info.clone()));
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&info));
    let hex = info.digest.strip_prefix("sha256:").unwrap();
    let dir = home.path().join("data/images");
    assert_eq!(info.path, dir.join(format!("sha256_{hex}/root.erofs")));
    assert_eq!(info.size_bytes, fs::metadata(&info.path).unwrap().len());
    let sum = std::process::Command::new("sha256sum").arg(&info.path).output().unwrap();
    assert!(String::from_utf8(sum.stdout).unwrap().starts_with(hex));
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(files(&dir), [".lock", "blobs", "manifests", "names", &format!("sha256_{hex}")]);
}

#[test]
fn the_same_content_is_stored_once() {
    let (home, store) = store();
    let first = store.import(&name("a"), &tar("one")[..]).unwrap();
    let second = store.import(&name("registry.example/b:v1.0"), &tar("one")[..]).unwrap();
    assert_eq!((&first.digest, &first.path), (&second.digest, &second.path));
    assert_eq!(images(&home.path().join("data/images")).len(), 1);
    let names: Vec<_> = store.list().unwrap().into_iter().map(|i| i.name.to_string()).collect();
    assert_eq!(names, ["a", "registry.example/b:v1.0"]);
}

#[test]
fn a_name_moves_to_what_was_imported_last_and_the_old_image_stays() {
    let (_home, store) = store();
    let old = store.import(&name("a"), &tar("one")[..]).unwrap();
    let new = store.import(&name("a"), &tar("two")[..]).unwrap();
    assert_ne!(old.digest, new.digest);
    assert_eq!(store.resolve(&name("a")).unwrap().unwrap().digest, new.digest);
    assert!(old.path.exists(), "running instances may use it");
}

#[test]
fn a_failed_import_leaves_the_store_as_it_was() {
    let (home, store) = store();
    store.import(&name("a"), &tar("one")[..]).unwrap();
    let before = files(&home.path().join("data/images"));
    assert!(matches!(store.import(&name("a"), &tar("two")[..700]), Err(ImageError::Truncated { .. })));
    assert_eq!(files(&home.path().join("data/images")), before);
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn concurrent_imports_all_succeed() {
    let (home, store) = store();
    std::thread::scope(|scope| {
        for i in 0..8 {
            let store = store.clone();
            let dir = home.path().join("data/images");
            scope.spawn(move || {
                for round in 0..6 {
                    // Some content and some names shared, and another process opening the store meanwhile.
                    let content = format!("content {}", (i + round) % 3);
                    store.import(&name(&format!("n{}", i % 4)), &tar(&content)[..]).unwrap();
                    Store::open(&dir).unwrap().list().unwrap();
                }
            });
        }
    });
    assert_eq!(store.list().unwrap().len(), 4);
    assert_eq!(images(&home.path().join("data/images")).len(), 3);
}

#[test]
fn opening_removes_what_a_crashed_import_left() {
    let (home, store) = store();
    store.import(&name("a"), &tar("one")[..]).unwrap();
    let dir = home.path().join("data/images");
    fs::create_dir(dir.join(".import-dead")).unwrap();
    fs::write(dir.join(".import-dead/root.erofs"), "half").unwrap();
    fs::write(dir.join("names/.import-dead"), "{").unwrap();
    let store = Store::open(&dir).unwrap();
    assert_eq!(images(&dir).len(), 1);
    assert_eq!(files(&dir.join("names")), ["a.json"]);
    assert!(store.resolve(&name("a")).unwrap().is_some());
}

#[test]
fn damage_is_reported_and_repaired_by_importing_again() {
    let (home, store) = store();
    let info = store.import(&name("a"), &tar("one")[..]).unwrap();
    fs::write(&info.path, "short").unwrap();
    assert!(matches!(store.resolve(&name("a")), Err(ImageError::MissingImage { .. })));
    assert!(store.list().unwrap().is_empty());
    store.import(&name("a"), &tar("one")[..]).unwrap();
    assert_eq!(store.resolve(&name("a")).unwrap().unwrap().digest, info.digest);

    let record = home.path().join("data/images/names/a.json");
    for damage in
        ["{", r#"{"name":"a","digest":"sha256:../../x","size_bytes":1,"created_at":"2026-01-01T00:00:00Z"}"#]
    {
        fs::write(&record, damage).unwrap();
        assert!(matches!(store.resolve(&name("a")), Err(ImageError::DamagedRecord { .. })), "{damage}");
    }
    store.import(&name("a"), &tar("one")[..]).unwrap();
    assert!(store.resolve(&name("a")).unwrap().is_some());
}
