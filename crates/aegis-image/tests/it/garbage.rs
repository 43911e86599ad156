//! Names that go, and what goes with them.

use std::fs;
use std::time::{Duration, SystemTime};

use aegis_image::{Compression, ImageError, PruneScope, Store};
use aegis_types::{Digest, ImageName};
use jiff::Timestamp;

use super::stack::*;
use super::support::*;

fn layer(content: &str) -> Vec<u8> {
    Archive::new().file(content, &vec![content.as_bytes()[0]; 20_000]).finish()
}

fn nobody(_: &str) -> bool {
    false
}

fn everything() -> PruneScope {
    PruneScope { unused_before: Some(Timestamp::MAX), ..PruneScope::default() }
}

fn count(home: &Home, dir: &str) -> usize {
    let dir = home.images().join(dir);
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("sha256_")).count()
}

#[test]
fn deleting_takes_a_name_and_pruning_what_no_name_needs() {
    let home = Home::new();
    let shared = layer("shared");
    home.build("a", &[shared.clone(), layer("x")]).unwrap();
    let b = home.build("b", &[shared, layer("y")]).unwrap();
    let other = home.store.tag(&name("also-b"), b.manifest.as_ref().unwrap()).unwrap().unwrap();
    assert_eq!((&other.digest, other.name.as_str()), (&b.digest, "also-b"));
    assert_eq!((count(&home, ""), count(&home, "blobs"), count(&home, "manifests")), (2, 5, 2));

    assert_eq!(home.store.delete(&name("none")).unwrap(), None);
    let deleted = home.store.delete(&name("b")).unwrap().unwrap();
    assert_eq!((deleted.digest, deleted.others), (Some(b.digest.clone()), vec![name("also-b")]));
    assert_eq!(home.store.resolve(&name("b")).unwrap(), None);
    let pruned = home.store.prune(&nobody, &PruneScope::default()).unwrap();
    assert_eq!((pruned.images.len(), pruned.blobs, pruned.freed_bytes), (0, 0, 0));

    assert!(home.store.delete(&name("also-b")).unwrap().unwrap().others.is_empty());
    let usage = home.store.disk_usage().unwrap();
    let pruned = home.store.prune(&nobody, &PruneScope::default()).unwrap();
    assert_eq!(pruned.images, std::slice::from_ref(&b.digest));
    assert_eq!(pruned.blobs, 2, "its configuration and its own layer, not the shared one");
    let after = home.store.disk_usage().unwrap();
    let freed = usage.image_bytes + usage.layer_bytes - after.image_bytes - after.layer_bytes;
    assert_eq!(pruned.freed_bytes, freed);
    assert_eq!((count(&home, ""), count(&home, "blobs"), count(&home, "manifests")), (1, 3, 1));
    let mut archive = Vec::new();
    home.store.save(&name("a"), &mut archive).unwrap();
    assert_eq!(home.store.tag(&name("b"), b.manifest.as_ref().unwrap()).unwrap(), None);
}

#[test]
fn what_is_in_use_keeps_everything_it_needs() {
    let home = Home::new();
    let a = home.build("a", &[layer("x")]).unwrap();
    home.build("a", &[layer("y")]).unwrap(); // the name means something else now
    let in_use = |digest: &str| digest == a.digest;
    home.store.prune(&in_use, &everything()).unwrap();
    assert!(home.store.list().unwrap().is_empty());
    let found = home.store.find(&a.digest, a.manifest.as_ref()).unwrap().unwrap();
    assert_eq!((&found.path, &found.config, &found.layers), (&a.path, &a.config, &a.layers));
    assert_eq!(found.name, Some(name("a")), "what it was built for");
    assert_eq!(home.store.find(&a.digest, None).unwrap(), Some(found));
    let back = home.store.tag(&name("again"), a.manifest.as_ref().unwrap()).unwrap().unwrap();
    assert_eq!(back.digest, a.digest);
    home.store.save(&name("again"), std::io::sink()).unwrap();
}

#[test]
fn images_are_found_by_digest_named_or_not() {
    let home = Home::new();
    let a = home.build("a", &[layer("x")]).unwrap();
    let imported = home.store.import(&name("i"), &layer("i")[..]).unwrap();
    let found = home.store.find(&imported.digest, None).unwrap().unwrap();
    assert_eq!((found.name, found.config), (Some(name("i")), Default::default()));
    assert_eq!(home.store.find(&a.digest, Some(&sha256(b"other"))).unwrap(), None);
    assert_eq!(home.store.find(sha256(b"other").as_str(), None).unwrap(), None);
    assert_eq!(home.store.find("../../etc", None).unwrap(), None);
}

#[test]
fn use_decides_what_is_old() {
    let home = Home::new();
    home.build("old", &[layer("x")]).unwrap();
    home.build("used", &[layer("y")]).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(1_000_000);
    for file in ["old.json", "used.json"] {
        let record = fs::File::open(home.images().join("names").join(file)).unwrap();
        record.set_modified(long_ago).unwrap();
    }
    let before = home.store.resolve(&name("used")).unwrap().unwrap();
    assert_eq!(before.last_used, Timestamp::try_from(long_ago).unwrap());
    home.store.mark_used(&name("used")).unwrap();
    let after = home.store.resolve(&name("used")).unwrap().unwrap();
    assert!(after.last_used > before.last_used && after.created_at == before.created_at);
    let an_hour_ago = Timestamp::try_from(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    let scope = PruneScope { unused_before: Some(an_hour_ago), ..PruneScope::default() };
    let pruned = home.store.prune(&nobody, &scope).unwrap();
    assert_eq!((pruned.names, pruned.images.len()), (vec![name("old")], 1));
    assert!(home.store.mark_used(&name("old")).is_err());
    home.store.save(&name("used"), std::io::sink()).unwrap();
}

#[test]
fn nothing_is_removed_while_somebody_holds_the_store() {
    let home = Home::new();
    home.build("a", &[layer("x")]).unwrap();
    let hold = home.store.hold().unwrap();
    let second = Store::open(&home.images()).unwrap().hold().unwrap();
    let downloaded = home.layer(&layer("new"), Compression::Gzip);
    drop(hold);
    assert!(matches!(home.store.prune(&nobody, &everything()), Err(ImageError::Busy)));
    home.store.build(&second, &name("b"), &home.describe(vec![downloaded.clone()]), &|_, _| {}).unwrap();
    drop(second);
    home.store.prune(&nobody, &PruneScope::default()).unwrap();
    assert!(home.store.blob_path(&downloaded.digest).exists(), "an image consists of it now");
    let pruned = home.store.prune(&nobody, &everything()).unwrap();
    assert_eq!(pruned.names, [name("a"), name("b")]);
    assert_eq!((count(&home, ""), count(&home, "blobs"), count(&home, "manifests")), (0, 0, 0));
}

#[test]
fn a_hold_can_move_to_another_thread() {
    fn movable<T: Send + Sync>(_: &T) {}
    movable(&Home::new().store.hold().unwrap());
}

#[test]
fn unfinished_downloads_stay_for_a_while_to_be_resumed() {
    let home = Home::new();
    let (old, new) = (home.store.partial_path(&sha256(b"old")), home.store.partial_path(&sha256(b"new")));
    for path in [&old, &new] {
        fs::write(path, vec![1; 10_000]).unwrap();
    }
    let two_days_ago = SystemTime::now() - Duration::from_secs(2 * 86_400);
    fs::File::open(&old).unwrap().set_modified(two_days_ago).unwrap();
    assert!(home.store.disk_usage().unwrap().partial_bytes >= 20_000);
    Store::open(&home.images()).unwrap();
    assert!(old.exists() && new.exists(), "opening removes none");
    let pruned = home.store.prune(&nobody, &PruneScope::default()).unwrap();
    assert_eq!((pruned.partials, old.exists(), new.exists()), (1, false, true));
    let now = PruneScope { partial_before: Timestamp::MAX, ..PruneScope::default() };
    assert_eq!(home.store.prune(&nobody, &now).unwrap().partials, 1);
}

#[test]
fn files_that_are_not_of_the_store_stay() {
    let home = Home::new();
    for file in ["notes.txt", "blobs/sha256_short", "blobs/x.part", "names/readme"] {
        fs::write(home.images().join(file), "mine").unwrap();
    }
    home.store.prune(&nobody, &everything()).unwrap();
    for file in ["notes.txt", "blobs/sha256_short", "blobs/x.part", "names/readme"] {
        assert!(home.images().join(file).exists(), "{file}");
    }
}

#[test]
fn usage_tells_shared_bytes_from_unique_ones() {
    let home = Home::new();
    let shared = layer("shared");
    let a = home.build("a", &[shared.clone(), layer("x")]).unwrap();
    home.build("b", &[shared.clone(), layer("y")]).unwrap();
    let unneeded = home.put(&[5; 9000]);
    let usage = home.store.disk_usage().unwrap();
    let names: Vec<&ImageName> = usage.images.iter().map(|image| &image.name).collect();
    assert_eq!(names, [&name("a"), &name("b")]);
    let on_disk = |digest: &Digest| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(home.store.blob_path(digest)).unwrap().blocks() * 512
    };
    let first = &usage.images[0];
    assert_eq!(first.shared_bytes, on_disk(&a.layers[0]));
    assert_eq!(first.unique_bytes, first.image_bytes + first.layer_bytes - first.shared_bytes);
    assert!(first.image_bytes >= 40_000);
    assert_eq!(usage.image_bytes, usage.images[0].image_bytes + usage.images[1].image_bytes);
    assert_eq!((usage.unnamed_bytes, usage.unneeded_bytes), (0, on_disk(&unneeded)));

    home.store.tag(&name("c"), a.manifest.as_ref().unwrap()).unwrap().unwrap();
    home.store.delete(&name("b")).unwrap();
    let usage = home.store.disk_usage().unwrap();
    assert_eq!((usage.images[0].unique_bytes, usage.images[0].shared_bytes > 0), (0, true));
    assert!(usage.unnamed_bytes > 0, "b is an image without a name now");
}

#[test]
fn names_with_a_digest_find_what_is_there_under_another_name() {
    let home = Home::new();
    let info = home.build("ghcr.io/team/app:1", &[layer("x")]).unwrap();
    let manifest = info.manifest.clone().unwrap();
    let pinned = |repository: &str| name(&format!("{repository}@{manifest}"));
    assert_eq!(home.store.resolve(&pinned("ghcr.io/team/app")).unwrap(), Some(info.clone()));
    assert_eq!(home.store.resolve(&pinned("ghcr.io/team/app:2")).unwrap(), Some(info));
    assert_eq!(home.store.resolve(&pinned("ghcr.io/else/app")).unwrap(), None);
    let wrong = name(&format!("ghcr.io/team/app@{}", sha256(b"")));
    assert_eq!(home.store.resolve(&wrong).unwrap(), None);
    let tagged = home.store.tag(&pinned("x"), &manifest).unwrap().unwrap();
    assert_eq!(home.store.resolve(&tagged.name).unwrap(), Some(tagged));
}

#[test]
fn records_from_before_there_were_manifests_are_read() {
    let home = Home::new();
    let info = home.store.import(&name("old"), &layer("x")[..]).unwrap();
    let names = home.images().join("names");
    let old = |name: &str| {
        format!(
            r#"{{"name":"{name}","digest":"{}","size_bytes":{},"created_at":"2026-01-01T00:00:00Z"}}"#,
            info.digest, info.size_bytes
        )
    };
    fs::write(names.join("old.json"), old("old")).unwrap();
    fs::write(names.join("team+x:latest.json"), old("team/x:latest")).unwrap();
    fs::write(names.join("old:latest.json"), old("old:latest")).unwrap();
    fs::remove_dir_all(home.images().join("manifests")).unwrap();
    fs::remove_dir_all(home.images().join("blobs")).unwrap();
    let store = Store::open(&home.images()).unwrap();
    let listed: Vec<_> = store.list().unwrap().into_iter().map(|image| image.name.to_string()).collect();
    assert_eq!(listed, ["old", "team/x"]);
    let resolved = store.resolve(&name("team/x")).unwrap().unwrap();
    assert_eq!((&resolved.digest, resolved.manifest.as_ref()), (&info.digest, None));
    assert!(resolved.config.env.is_empty() && resolved.layers.is_empty());
    assert!(matches!(store.save(&name("old"), std::io::sink()), Err(ImageError::NotKept(_))));
    assert_eq!(store.find(&info.digest, None).unwrap().unwrap().name, Some(name("old")));
    assert!(store.prune(&nobody, &PruneScope::default()).unwrap().images.is_empty());
    assert!(info.path.exists());
    assert_eq!(store.disk_usage().unwrap().images.len(), 2);
}

#[test]
fn a_name_without_its_manifest_is_damaged_and_can_be_deleted() {
    let home = Home::new();
    home.build("a", &[layer("x")]).unwrap();
    let manifests = home.images().join("manifests");
    for entry in fs::read_dir(&manifests).unwrap() {
        fs::write(entry.unwrap().path(), "{").unwrap();
    }
    assert!(matches!(home.store.resolve(&name("a")), Err(ImageError::DamagedRecord { .. })));
    assert!(home.store.list().unwrap().is_empty());
    fs::write(home.images().join("names/a.json"), "{").unwrap();
    assert_eq!(home.store.delete(&name("a")).unwrap().unwrap().digest, None);
    home.build("a", &[layer("x")]).unwrap();
    assert_eq!(home.store.list().unwrap().len(), 1);
}

#[test]
fn opening_removes_what_crashed_builds_left_everywhere() {
    let home = Home::new();
    let info = home.build("a", &[layer("x")]).unwrap();
    for dir in ["", "names", "manifests", "blobs"] {
        fs::write(home.images().join(dir).join(".import-dead"), "half").unwrap();
    }
    let hold = home.store.hold().unwrap();
    Store::open(&home.images()).unwrap();
    assert!(home.images().join("blobs/.import-dead").exists(), "it may be of whoever holds the store");
    drop(hold);
    Store::open(&home.images()).unwrap(); // Home checks that they are gone
    assert_eq!(home.store.resolve(&name("a")).unwrap(), Some(info));
}
