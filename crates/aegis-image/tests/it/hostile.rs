//! Archives that lie, contradict themselves or ask for too much.

use aegis_image::{ImageError, Limits};

use super::support::*;

fn limited(tar: &[u8], limits: &Limits) -> String {
    match try_build(tar, limits) {
        Err(error @ ImageError::Limit { .. }) => error.to_string(),
        Err(other) => panic!("not a limit: {other}"),
        Ok(_) => panic!("the limit does not hold"),
    }
}

#[test]
fn paths_stay_inside_the_tree() {
    let (_built, listing) =
        build(&Archive::new().file("/abs", b"").file("./dot//twice", b"").file(".//./x/", b"").finish());
    assert_eq!(paths(&listing), ["/", "/abs", "/dot", "/dot/twice", "/x"]);
    assert_eq!(kind(&listing, "/x"), &Kind::Dir, "a name with a final slash is a directory");
    for path in ["../x", "a/../../x", "a/..", "..", "/.."] {
        let error = build_error(&Archive::new().file(path, b"").finish());
        assert_eq!(error, format!("archive entry `{path}`: `..` in a path"));
        let error = build_error(&Archive::new().hard_link("l", path).finish());
        assert_eq!(error, "archive entry `l`: `..` in a path");
    }
    let error = build_error(&Archive::new().file(".", b"").finish());
    assert_eq!(error, "archive entry `.`: the root can only be a directory");
    let error = build_error(&Archive::new().pax(&[(b"path", b"a\0b")]).file("x", b"").finish());
    assert!(error.ends_with("NUL byte in a name or link target"), "{error}");
}

#[test]
fn the_last_entry_wins_and_directories_merge() {
    let tar = Archive::new()
        .file("a", b"old")
        .file("a", b"new")
        .dir("d")
        .file("d/kept", b"")
        .member(b'5', b"d", b"", |h| h.set_mode(0o700))
        .file("t/x", b"")
        .symlink("t", "elsewhere")
        .symlink("s", "d")
        .dir("s")
        .finish();
    let (_built, listing) = build(&tar);
    assert_eq!(paths(&listing), ["/", "/a", "/d", "/d/kept", "/s", "/t"]);
    assert_eq!(kind(&listing, "/a"), &Kind::File(b"new".to_vec()));
    assert_eq!(listing[&b"/d"[..]].mode, 0o700);
    assert_eq!(kind(&listing, "/t"), &Kind::Symlink(b"elsewhere".to_vec()));
    assert_eq!(kind(&listing, "/s"), &Kind::Dir);
}

#[test]
fn parents_that_are_links_are_followed_within_the_tree_and_files_replaced() {
    let tar = Archive::new()
        .dir("etc")
        .symlink("l", "/etc")
        .file("l/passwd", b"mine")
        .file("f", b"")
        .symlink("f/below", "x")
        .finish();
    let (_built, listing) = build(&tar);
    assert_eq!(paths(&listing), ["/", "/etc", "/etc/passwd", "/f", "/f/below", "/l"]);
    assert_eq!(kind(&listing, "/l"), &Kind::Symlink(b"/etc".to_vec()));
    assert_eq!(kind(&listing, "/etc/passwd"), &Kind::File(b"mine".to_vec()));
}

#[test]
fn hard_links_need_an_earlier_file() {
    let missing = build_error(&Archive::new().hard_link("l", "later").file("later", b"").finish());
    assert_eq!(missing, "archive entry `l`: hard link to `later`, which is not in the archive before it");
    let (_built, listing) =
        build(&Archive::new().file("d/f", b"").symlink("s", "d").hard_link("l", "s/f").finish());
    assert_eq!(
        listing[&b"/l"[..]].same_as,
        listing[&b"/d/f"[..]].same_as,
        "through a link, as for a process"
    );
    let dir = build_error(&Archive::new().dir("d").hard_link("l", "d").finish());
    assert_eq!(dir, "archive entry `l`: hard link to directory `d`");
    let (_built, listing) =
        build(&Archive::new().symlink("s", "x").hard_link("t", "s").file("s", b"").finish());
    assert_eq!((kind(&listing, "/t"), listing[&b"/t"[..]].links), (&Kind::Symlink(b"x".to_vec()), 1));
}

#[test]
fn an_archive_cut_anywhere_is_refused() {
    let tar = Archive::new()
        .pax(&[(b"path", b"long"), (b"SCHILY.xattr.user.a", b"b")])
        .file("x", &[1; 1000])
        .finish();
    let end = tar.len() - 1024;
    for cut in (0..end).step_by(61).chain([end]) {
        let error = build_error(&tar[..cut]);
        assert!(error.starts_with("the archive is truncated after `"), "cut at {cut}: {error}");
    }
    assert!(build_error(&tar[..end - 100]).contains("`long`"), "names the entry");
    try_build(&tar[..end + 512], &Limits::default()).unwrap(); // one zero block is enough
}

#[test]
fn what_is_not_tar_is_named_so() {
    assert_eq!(build_error(&[b'x'; 2048]), "not a tar archive");
    let tar = Archive::new().file("a", b"").raw(&[b'x'; 512]).finish();
    assert_eq!(build_error(&tar), "corrupt header at byte 512 of the archive, after `a`");
    let tar = Archive::new().member(b'M', b"part", b"", |_| {}).finish();
    assert_eq!(build_error(&tar), "archive entry `part`: unsupported entry type `M`");
}

#[test]
fn numbers_out_of_range_are_refused() {
    for (key, value, what) in [
        (&b"uid"[..], &b"4294967295"[..], "owner"),
        (b"gid", b"99999999999", "group"),
        (b"mtime", b"99999999999999999999", "modification time"),
        (b"size", b"-1", "size"),
    ] {
        let error = build_error(&Archive::new().pax(&[(key, value)]).file("f", b"").finish());
        assert!(error.ends_with(&format!("invalid {what}")), "{error}");
    }
    let tar = Archive::new().pax(&[(b"SCHILY.devmajor", b"4096")]).member(b'3', b"c", b"", |_| {}).finish();
    assert_eq!(build_error(&tar), "archive entry `c`: invalid device number");
    let tar = Archive::new().symlink("s", "").finish();
    assert!(build_error(&tar).contains("symbolic link target is empty"));
    let tar = Archive::new().pax(&[(b"linkpath", &[b'x'; 4096])]).symlink("s", "").finish();
    assert!(build_error(&tar).contains("longer than 4095"));
}

#[test]
fn a_link_or_directory_that_claims_content_hides_nothing() {
    // Were the size believed, `hidden` would be skipped as content.
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let tar = Archive::new()
            .file("t", b"")
            .member(kind, b"e", b"", |h| {
                h.set_size(512);
                h.as_old_mut().linkname[0] = b't';
            })
            .file("hidden", b"")
            .finish();
        assert!(paths(&build(&tar).1).contains(&"/hidden".into()), "{}", char::from(kind));
    }
    // A PAX size belongs to the member, not to the long name between them.
    let tar = Archive::new()
        .pax(&[(b"size", b"3")])
        .member(b'L', b"././@LongLink", b"long\0", |_| {})
        .member(b'0', b"short", b"abc", |h| h.set_size(0))
        .finish();
    assert_eq!(kind(&build(&tar).1, "/long"), &Kind::File(b"abc".to_vec()));
}

#[test]
fn every_limit_holds_and_names_the_entry() {
    let limits = Limits {
        max_entries: 5,
        max_bytes: 4000,
        max_depth: 3,
        max_name: 8,
        max_metadata_bytes: 100,
        ..Limits::default()
    };
    let many = (0..6).fold(Archive::new(), |a, i| a.file(&format!("f{i}"), b"")).finish();
    assert_eq!(limited(&many, &limits), "archive entry `f4` exceeds the limit of 5 entries");
    let implied = Archive::new().file("a/b/c", b"").file("d/e/f", b"").finish();
    assert_eq!(limited(&implied, &limits), "archive entry `d/e/f` exceeds the limit of 5 inodes");
    let large = Archive::new().file("big", &[0; 4001]).finish();
    assert_eq!(limited(&large, &limits), "archive entry `big` exceeds the limit of 4000 bytes");
    let huge = Archive::new().pax(&[(b"size", b"18446744073709551615")]).file("huge", b"").finish();
    assert!(limited(&huge, &limits).starts_with("archive entry `huge` exceeds"));
    let metadata = Archive::new().pax(&[(b"SCHILY.xattr.user.a", &[0; 100])]).file("m", b"").finish();
    assert!(limited(&metadata, &limits).contains("bytes of names"));
    let pax = Archive::new().member(b'x', b"", b"", |h| h.set_size(5 << 20)).finish();
    assert!(limited(&pax, &Limits::default()).contains("bytes of extension header"));
    let deep = Archive::new().file("a/b/c/d", b"").finish();
    assert!(try_build(&deep, &limits).err().unwrap().to_string().contains("more than 3 levels deep"));
    let long = Archive::new().file("123456789", b"").finish();
    assert!(try_build(&long, &limits).err().unwrap().to_string().contains("longer than 8 bytes"));
}

#[test]
fn the_deepest_allowed_path_is_built() {
    let path = vec!["d"; 256].join("/");
    let tar = Archive::new().pax(&[(b"path", path.as_bytes())]).file("x", b"end").finish();
    assert_eq!(kind(&build(&tar).1, &format!("/{path}")), &Kind::File(b"end".to_vec()));
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let sparse = |map: &[u8], size: &[u8]| {
        build_error(
            &Archive::new()
                .pax(&[(b"GNU.sparse.map", map), (b"GNU.sparse.size", size)])
                .file("s", b"0123456789")
                .finish(),
        )
    };
    for map in
        [&b"0,11"[..], b"0,5", b"5,5,0,5", b"95,10", b"18446744073709551615,10", b"0", b"a,b", b"0,10,"]
    {
        let error = sparse(map, b"100");
        let (at, problem) = error.split_once("`: ").expect("names the place");
        assert!(
            ["archive entry `s", "extension header after `start of the archive"].contains(&at),
            "{error}"
        );
        assert!(problem == "invalid sparse map" || problem.contains("sparse file map"), "{error}");
    }
    assert!(sparse(b"0,10", b"9000000000000").contains("exceeds the limit"), "holes count");
}
