//! Layers over layers.

use std::fs;
use std::os::unix::fs::MetadataExt;

use aegis_image::{Compression, Description, ImageError, Layer, Limits};

use super::stack::*;
use super::support::*;

fn base() -> Vec<u8> {
    Archive::new()
        .dir("etc")
        .file("etc/issue", b"old")
        .file("etc/motd", b"hello")
        .dir("usr")
        .dir("usr/bin")
        .file("usr/bin/sh", b"shell")
        .hard_link("usr/bin/ash", "usr/bin/sh")
        .symlink("bin", "usr/bin")
        .finish()
}

fn content<'l>(listing: &'l Listing, path: &str) -> &'l [u8] {
    match kind(listing, path) {
        Kind::File(content) => content,
        other => panic!("{path} is {other:?}"),
    }
}

#[test]
fn every_compression_gives_the_same_image() {
    let layers = [base(), Archive::new().file("etc/issue", &[9; 70_000]).finish()];
    let mut digests = Vec::new();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let home = Home::new();
        let packed: Vec<Layer> = layers.iter().map(|tar| home.layer(tar, compression)).collect();
        let hold = home.store.hold().unwrap();
        let total: u64 = packed.iter().map(|layer| layer.size_bytes).sum();
        let seen = std::cell::Cell::new((0, 0));
        let description = home.describe(packed);
        let progress = |done, total| {
            assert!(done >= seen.get().0);
            seen.set((done, total));
        };
        let info = home.store.build(&hold, &name("a"), &description, &progress).unwrap();
        assert_eq!(seen.get(), (total, total));
        assert_eq!(info.manifest.as_ref(), Some(&description.manifest));
        assert_eq!(info.layers, description.layers.iter().map(|l| l.digest.clone()).collect::<Vec<_>>());
        assert_eq!((info.config.cmd[0].as_str(), info.config.env["PATH"].as_str()), ("sh", "/bin"));
        assert_eq!(home.store.resolve(&name("a")).unwrap().as_ref(), Some(&info));
        digests.push(info.digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1);
}

#[test]
fn a_wrong_label_of_the_compression_does_no_harm() {
    let home = Home::new();
    let layer = Layer { compression: Compression::Gzip, ..home.layer(&base(), Compression::Zstd) };
    let hold = home.store.hold().unwrap();
    home.store.build(&hold, &name("a"), &home.describe(vec![layer]), &|_, _| {}).unwrap();
}

#[test]
fn upper_layers_replace_and_merge() {
    let listing = stacked(&[
        base(),
        Archive::new()
            .member(b'5', b"etc", b"", |h| h.set_mode(0o700))
            .file("etc/issue", b"new")
            .member(b'0', b"usr/bin/sudo", b"x", |h| {
                h.set_mode(0o4755);
                h.set_uid(0);
                h.set_gid(7);
            })
            .finish(),
    ]);
    assert_eq!(content(&listing, "/etc/issue"), b"new");
    assert_eq!(content(&listing, "/etc/motd"), b"hello");
    assert_eq!(listing[&b"/etc"[..]].mode, 0o700);
    let sudo = &listing[&b"/usr/bin/sudo"[..]];
    assert_eq!((sudo.mode, sudo.gid), (0o4755, 7));
}

#[test]
fn types_replace_each_other() {
    let listing = stacked(&[
        Archive::new().dir("d").file("d/x", b"").file("f", b"").symlink("l", "d").file("m", b"").finish(),
        Archive::new().file("d", b"file").dir("f").file("f/y", b"").dir("l").symlink("m", "f").finish(),
    ]);
    assert_eq!(paths(&listing), ["/", "/d", "/f", "/f/y", "/l", "/m"]);
    assert_eq!(content(&listing, "/d"), b"file");
    assert_eq!((kind(&listing, "/f"), kind(&listing, "/l")), (&Kind::Dir, &Kind::Dir));
    assert_eq!(kind(&listing, "/m"), &Kind::Symlink(b"f".to_vec()));
}

#[test]
fn a_whiteout_hides_lower_names_and_never_its_own_layers() {
    let whiteouts = Archive::new()
        .file("etc/.wh.issue", b"")
        .file("usr/bin/.wh.ash", b"")
        .file(".wh.nothing", b"")
        .file("no/where/.wh.x", b"")
        .file(".wh.bin", b"")
        .finish();
    let listing = stacked(&[base(), whiteouts]);
    assert_eq!(paths(&listing), ["/", "/etc", "/etc/motd", "/usr", "/usr/bin", "/usr/bin/sh"]);
    assert_eq!(listing[&b"/usr/bin/sh"[..]].links, 1, "the whiteout took one name of two");

    // In whatever order the two come.
    let first = Archive::new().file(".wh.etc", b"").dir("etc").file("etc/new", b"1");
    let last = Archive::new().dir("etc").file("etc/new", b"1").file(".wh.etc", b"");
    let implied_first = Archive::new().file(".wh.etc", b"").file("etc/new", b"1");
    let implied_last = Archive::new().file("etc/new", b"1").file(".wh.etc", b"");
    for (upper, mode) in [(first, 0o755), (last, 0o755), (implied_first, 0o755), (implied_last, 0o755)] {
        let private = Archive::new().member(b'5', b"etc", b"", |h| h.set_mode(0o700)).file("etc/old", b"");
        let listing = stacked(&[private.finish(), upper.finish()]);
        assert_eq!(paths(&listing), ["/", "/etc", "/etc/new"]);
        assert_eq!(listing[&b"/etc"[..]].mode, mode);
    }
    let same_name = Archive::new().file("a", b"new").file(".wh.a", b"").finish();
    let listing = stacked(&[Archive::new().file("a", b"old").finish(), same_name.clone()]);
    assert_eq!(content(&listing, "/a"), b"new");
    let listing = stacked(&[same_name, Archive::new().file(".wh.a", b"").finish()]);
    assert_eq!(paths(&listing), ["/"], "a later layer hides it");
}

#[test]
fn an_opaque_directory_hides_all_below_it_but_its_own_layers() {
    let lower = Archive::new().file("d/a", b"").file("d/sub/b", b"").file("e", b"").finish();
    let opaque = |archive: Archive| archive.file("d/.wh..wh..opq", b"");
    let own = |archive: Archive| archive.file("d/mine", b"").file("d/sub/c", b"");
    for upper in [own(opaque(Archive::new())), opaque(own(Archive::new()))] {
        let listing = stacked(&[lower.clone(), upper.finish()]);
        assert_eq!(paths(&listing), ["/", "/d", "/d/mine", "/d/sub", "/d/sub/c", "/e"]);
    }
    let root = Archive::new().file("new", b"").file(".wh..wh..opq", b"").finish();
    assert_eq!(paths(&stacked(&[lower, root])), ["/", "/new"]);
}

#[test]
fn a_single_layer_has_nothing_to_hide() {
    let only = Archive::new().file("a", b"").file(".wh.a", b"").file("d/.wh..wh..opq", b"").finish();
    assert_eq!(paths(&stacked(&[only])), ["/", "/a"]);
}

#[test]
fn names_that_only_old_storage_drivers_use_are_left_out() {
    let aufs = Archive::new()
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh.aufs", b"")
        .file("kept", b"")
        .finish();
    assert_eq!(paths(&stacked(&[aufs])), ["/", "/kept"]);
}

#[test]
fn whiteouts_of_what_cannot_be_are_refused() {
    for bad in [".wh.", "d/.wh..", ".wh..."] {
        let error = stack_error(&[Archive::new().file(bad, b"").finish()]);
        assert!(error.ends_with("whiteout of a name that no file can have"), "{bad}: {error}");
    }
    let error = stack_error(&[Archive::new().file(".wh.d/x", b"").finish()]);
    assert!(error.ends_with("archive entry `.wh.d/x`: entry below a whiteout"), "{error}");
    let error = stack_error(&[Archive::new().file("../.wh.canary", b"").finish()]);
    assert!(error.ends_with("`..` in a path"), "{error}");
}

#[test]
fn hard_links_reach_into_lower_layers() {
    let listing = stacked(&[
        base(),
        Archive::new().hard_link("usr/bin/bash", "usr/bin/sh").hard_link("opt/sh", "bin/sh").finish(),
        Archive::new().file("usr/bin/sh", b"other").finish(),
    ]);
    assert_eq!(content(&listing, "/usr/bin/sh"), b"other");
    for path in ["/opt/sh", "/usr/bin/ash", "/usr/bin/bash"] {
        let seen = &listing[path.as_bytes()];
        assert_eq!(
            (content(&listing, path), seen.links, &seen.same_as[..]),
            (&b"shell"[..], 3, &b"/opt/sh"[..])
        );
    }
    let hidden = Archive::new().file("usr/bin/.wh.sh", b"").hard_link("x", "usr/bin/sh").finish();
    let error = stack_error(&[base(), hidden]);
    assert!(error.contains("cannot apply layer 2 of 2 (sha256:"), "{error}");
    assert!(error.ends_with("hard link to `usr/bin/sh`, which is not in the archive before it"), "{error}");
}

/// As on systems whose `bin` became a link to `usr/bin`, with layers made before that.
#[test]
fn entries_below_a_link_of_a_lower_layer_land_where_it_leads() {
    let upper = Archive::new().file("bin/tool", b"1").file("bin/sh", b"2").file("bin/.wh.ash", b"").finish();
    let listing = stacked(&[base(), upper]);
    assert_eq!(kind(&listing, "/bin"), &Kind::Symlink(b"usr/bin".to_vec()));
    assert_eq!(
        (content(&listing, "/usr/bin/tool"), content(&listing, "/usr/bin/sh")),
        (&b"1"[..], &b"2"[..])
    );
    assert!(!listing.contains_key(&b"/usr/bin/ash"[..]));
    // A directory of its own replaces the link: that is what its layer says is there.
    let listing = stacked(&[base(), Archive::new().dir("bin").file("bin/tool", b"1").finish()]);
    assert_eq!(kind(&listing, "/bin"), &Kind::Dir);
    assert!(listing.contains_key(&b"/bin/tool"[..]) && listing.contains_key(&b"/usr/bin/sh"[..]));
}

#[test]
fn links_are_followed_as_in_the_images_root() {
    let lower = Archive::new()
        .dir("a/b")
        .symlink("up", "../../../a/./b")
        .symlink("a/abs", "/a//b/")
        .symlink("dangling", "to/../made/here")
        .symlink("chain", "up")
        .file("file", b"")
        .symlink("tofile", "file")
        .finish();
    let upper = Archive::new()
        .file("up/1", b"")
        .file("a/abs/2", b"")
        .file("chain/3", b"")
        .file("dangling/4", b"")
        .file("tofile/5", b"")
        .finish();
    let listing = stacked(&[lower, upper]);
    for path in ["/a/b/1", "/a/b/2", "/a/b/3", "/made/here/4", "/file/5"] {
        assert_eq!(content(&listing, path), b"", "{path}");
    }
    assert!(!listing.contains_key(&b"/to"[..]));
}

#[test]
fn links_that_lead_in_circles_or_too_far_are_refused() {
    let circle = Archive::new().symlink("a", "b").symlink("b", "a").finish();
    let error = stack_error(&[circle, Archive::new().file("a/x", b"").finish()]);
    assert!(
        error.ends_with("archive entry `a/x`: more than 40 symbolic links, or very long ones, on the way"),
        "{error}"
    );
    // Each link leads deeper; no path in the archive is deep.
    let mut deep = Archive::new();
    let mut at = "d".to_owned();
    for i in 0..20 {
        let target = format!("{at}/{}", vec!["x"; 30].join("/"));
        deep = deep.symlink(&format!("l{i}"), &target).file(&format!("l{i}/f"), b"");
        at = format!("l{i}");
    }
    let error = stack_error(&[deep.finish()]);
    assert!(error.contains("more than 256 levels deep"), "{error}");
    // Many components that lead nowhere cost as much as a deep path, not more.
    let long = Archive::new().pax(&[(b"linkpath", "./".repeat(2000).as_bytes())]).symlink("l", "").finish();
    let error = stack_error(&[long, Archive::new().file("l/x", b"").finish()]);
    assert!(error.contains("very long ones"), "{error}");
}

#[test]
fn the_host_is_out_of_reach() {
    let home = Home::new();
    let canary = home.canary();
    let canary = canary.to_str().unwrap().as_bytes();
    let dir = canary[..canary.len() - "/canary".len()].to_vec();
    let lower = Archive::new()
        .pax(&[(b"linkpath", &dir)])
        .symlink("out", "")
        .symlink("up", "../../../../../..")
        .symlink("etc", "/../private/etc")
        .finish();
    let upper = Archive::new()
        .file("out/canary", b"overwritten")
        .file("out/.wh.canary", b"")
        .file("up/canary", b"x")
        .file("out/.wh..wh..opq", b"")
        .file("etc/passwd", b"root")
        .pax(&[(b"path", canary)])
        .file("x", b"overwritten")
        .finish();
    let info = home.build("a", &[lower, upper]).unwrap();
    let listing = read_image(&info.path);
    let inside = String::from_utf8(canary.to_vec()).unwrap();
    assert_eq!(content(&listing, &inside), b"overwritten", "inside of the image");
    assert_eq!(content(&listing, "/private/etc/passwd"), b"root");
    let link = Archive::new().pax(&[(b"linkpath", canary)]).hard_link("stolen", "").finish();
    let error = home.build("b", &[link]).unwrap_err();
    assert!(chain(&error).contains("which is not in the archive before it"));
}

#[test]
fn names_that_differ_in_case_are_different() {
    let listing = stacked(&[
        Archive::new().file("README", b"1").file("readme", b"2").finish(),
        Archive::new().file("ReadMe", b"3").file(".wh.readme", b"").finish(),
    ]);
    assert_eq!(paths(&listing), ["/", "/README", "/ReadMe"]);
}

#[test]
fn content_that_a_layer_removes_is_neither_there_nor_takes_space() {
    let secret: Vec<u8> = b"the private key ".repeat(40_000);
    let home = Home::new();
    let lower = Archive::new().file("key", &secret).file("old", &secret).file("kept", &[7; 9000]).finish();
    let upper = Archive::new().file(".wh.key", b"").file("old", &[8; 5000]).finish();
    let info = home.build("a", &[lower, upper]).unwrap();
    fsck(&info.path);
    let listing = read_image(&info.path);
    assert_eq!(paths(&listing), ["/", "/kept", "/old"]);
    assert_eq!((content(&listing, "/kept"), content(&listing, "/old")), (&[7; 9000][..], &[8; 5000][..]));
    let bytes = fs::read(&info.path).unwrap();
    assert!(!bytes.windows(16).any(|window| window == b"the private key "));
    let taken = fs::metadata(&info.path).unwrap().blocks() * 512;
    assert!(taken < 100_000, "{taken} bytes");
}

#[test]
fn a_layer_that_is_not_what_the_configuration_lists_is_refused() {
    let home = Home::new();
    let good = home.layer(&base(), Compression::Gzip);
    let other = home.layer(&Archive::new().file("x", b"").finish(), Compression::None);
    let swapped = Layer { diff_id: good.diff_id.clone(), ..other.clone() };
    let build = |description: &Description| {
        let hold = home.store.hold().unwrap();
        chain(&home.store.build(&hold, &name("a"), description, &|_, _| {}).unwrap_err())
    };
    let error = build(&home.describe(vec![swapped]));
    let expected = format!(
        "cannot apply layer 1 of 1 ({}): the uncompressed archive is {}, but should be {}",
        other.digest, other.diff_id, good.diff_id
    );
    assert_eq!(error, expected);

    let mut description = home.describe(vec![good.clone(), other.clone()]);
    description.layers.swap(0, 1);
    assert!(build(&description).starts_with("layer 1 of the image is said to be"), "order");
    description.layers.pop();
    assert_eq!(build(&description), "the image has 1 layers, but its configuration lists 2");

    let mut description = home.describe(vec![good]);
    description.config = b"{".to_vec();
    assert!(build(&description).starts_with("the image configuration cannot be read: "));
    let config = String::from_utf8(home.describe(vec![other.clone()]).config).unwrap();
    description = home.describe(vec![other.clone()]);
    description.config = config.replace("linux", "plan9").into_bytes();
    assert!(build(&description).starts_with("the image is made for plan9/"));

    fs::remove_file(home.store.blob_path(&other.digest)).unwrap();
    let error = build(&home.describe(vec![other.clone()]));
    assert!(error.contains("a part of the image, is missing or damaged"), "{error}");
    assert!(home.store.list().unwrap().is_empty());
}

#[test]
fn bytes_after_the_end_marker_belong_to_the_layer() {
    let padded = [base(), vec![0; 8192], b"trailer".to_vec()].concat();
    stacked(std::slice::from_ref(&padded));
    let home = Home::new();
    let layer = home.layer(&padded, Compression::Zstd);
    let wrong = Layer { diff_id: sha256(&base()), ..layer };
    let hold = home.store.hold().unwrap();
    let error = home.store.build(&hold, &name("a"), &home.describe(vec![wrong]), &|_, _| {}).unwrap_err();
    assert!(matches!(error, ImageError::Layer { .. }), "{error:?}");
}

#[test]
fn a_layer_may_be_empty_or_lack_its_end_marker_but_not_be_cut() {
    let whole = Archive::new().file("a", b"12345").finish();
    let listing = stacked(&[Vec::new(), whole[..1024].to_vec(), vec![0; 1024]]);
    assert_eq!(paths(&listing), ["/", "/a"]);
    for cut in [1, 511, 513, 1023] {
        let error = stack_error(&[whole[..cut].to_vec()]);
        assert!(error.contains("the archive is truncated after"), "{cut}: {error}");
    }
}

#[test]
fn limits_are_those_of_the_whole_image() {
    let limits = Limits { max_entries: 5, max_bytes: 10_000, max_layers: 3, ..Limits::default() };
    let refused = |layers: &[Vec<u8>]| {
        let home = Home::with_limits(limits.clone());
        chain(&home.build("a", layers).unwrap_err())
    };
    let file = |path: &str, len: usize| Archive::new().file(path, &vec![1; len]).finish();
    let error = refused(&[file("a", 4000), file("b", 4000), file("c", 4000)]);
    assert!(
        error.contains("layer 3 of 3") && error.ends_with("`c` exceeds the limit of 10000 bytes"),
        "{error}"
    );
    let two = |a: &str, b: &str| Archive::new().file(a, b"").file(b, b"").finish();
    let error = refused(&[two("a", "b"), two("c", "d"), two("e", "f")]);
    assert!(error.ends_with("`e` exceeds the limit of 5 entries"), "{error}");
    // Names that whiteouts take away still cost what they cost.
    let error = refused(&[two("a", "b"), two(".wh.a", ".wh.b"), two("e", "f")]);
    assert!(error.ends_with("exceeds the limit of 5 entries"), "{error}");
    let error = refused(&vec![file("a", 1); 4]);
    assert!(error.ends_with("the image has more than 3 layers"), "{error}");
    // A bomb: small packed, large unpacked, whether it is content or follows the end.
    let error = refused(&[[file("a", 1), vec![0; 50 << 20]].concat()]);
    assert!(error.ends_with("exceeds the limit of 10000 bytes"), "{error}");
    let error = refused(&[file("bomb", 50 << 20)]);
    assert!(error.ends_with("`bomb` exceeds the limit of 10000 bytes"), "{error}");
}
