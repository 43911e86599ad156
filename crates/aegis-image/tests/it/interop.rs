//! Archives made by GNU tar, and images read by the kernel.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::support::*;

fn run(command: &mut Command) {
    let output =
        command.output().unwrap_or_else(|e| panic!("these tests need {:?}: {e}", command.get_program()));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

fn sample_tree(root: &Path) {
    use std::os::unix::fs::FileExt;
    let deep = root.join("x".repeat(120)).join("y".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("z".repeat(200)), "long").unwrap();
    fs::write(root.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("script"), fs::Permissions::from_mode(0o2751)).unwrap();
    fs::hard_link(root.join("script"), root.join("twin")).unwrap();
    symlink("w".repeat(150), root.join("link")).unwrap();
    run(Command::new("mkfifo").arg(root.join("fifo")));
    let sparse = File::create(root.join("sparse")).unwrap();
    for i in 0..40u64 {
        sparse.write_all_at(&[i as u8 + 1; 3000], i * 100_000).unwrap();
    }
    sparse.set_len(5_000_000).unwrap();
}

#[test]
fn all_formats_of_gnu_tar_give_the_same_tree() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    sample_tree(&root);
    // Turns `--sparse` on; zeros count as holes whether or not this file system keeps them as such.
    const SPARSE: &str = "--hole-detection=raw";
    let image_of = |name: &str, options: &[&str]| {
        let tar = dir.path().join(name);
        let mut command = Command::new("tar");
        command.args(options).args(["--owner=:70000", "--group=:80000", "--mtime=@1700000000"]);
        run(command.arg("-C").arg(&root).arg("-cf").arg(&tar).arg("."));
        let tar = fs::read(&tar).unwrap();
        assert_eq!(tar.len() < 1 << 20, options.contains(&SPARSE), "{name}: {} bytes", tar.len());
        build(&tar).1
    };
    let plain = image_of("gnu", &["--format=gnu"]);
    assert_eq!(plain[&b"/script"[..]].links, 2);
    assert_eq!((plain[&b"/script"[..]].mode, plain[&b"/script"[..]].uid), (0o2751, 70_000));
    assert_eq!(plain[&b"/fifo"[..]].kind, Kind::Fifo);
    let Kind::File(sparse) = kind(&plain, "/sparse") else { panic!("a file") };
    assert_eq!((sparse.len(), sparse[3_900_000], sparse[3_903_000]), (5_000_000, 40, 0));
    for (name, options) in [
        ("gnu-sparse", &["--format=gnu", SPARSE][..]),
        ("oldgnu-sparse", &["--format=oldgnu", SPARSE]),
        ("pax", &["--format=posix"]),
        ("pax-sparse-0.0", &["--format=posix", SPARSE, "--sparse-version=0.0"]),
        ("pax-sparse-0.1", &["--format=posix", SPARSE, "--sparse-version=0.1"]),
        ("pax-sparse-1.0", &["--format=posix", SPARSE, "--sparse-version=1.0"]),
    ] {
        assert!(image_of(name, options) == plain, "{name} differs");
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "says that the kernel was not asked")]
fn the_kernel_reads_back_what_the_archive_said() {
    let supported = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let erofs = supported.lines().any(|line| line.trim() == "erofs");
    if !erofs || !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        eprintln!("no kernel mount here: needs root, loop devices and a kernel with erofs");
        return;
    }
    let tar = Archive::new()
        .member(b'5', b".", b"", |h| h.set_mode(0o711))
        .pax(&[
            (b"SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            (b"SCHILY.xattr.user.a", &[1; 5000]),
            (b"SCHILY.xattr.trusted.t", b"t"),
            (b"mtime", b"-1.25"),
            (b"uid", b"3000000000"),
        ])
        .member(b'0', b"ping", &[9; 10_000], |h| h.set_mode(0o755))
        .hard_link("pong", "ping")
        .symlink("short", "ping")
        .pax(&[(b"linkpath", &[b'q'; 4090])])
        .symlink("longlink", "x")
        .member(b'3', b"null", b"", |h| {
            h.set_device_major(1).unwrap();
            h.set_device_minor(3).unwrap();
        })
        .member(b'4', b"disk", b"", |h| {
            h.set_device_major(259).unwrap();
            h.set_device_minor(70_000).unwrap();
        })
        .member(b'6', b"fifo", b"", |_| {});
    let tar =
        (0..2000).fold(tar, |tar, i| tar.file(&format!("many/{}-{i}", ["-", "a"][i % 2]), &[i as u8; 3900]));
    let (built, listing) = build(&tar.finish());

    // In a mount namespace of its own: the mount and its loop device end with the shell, however it ends.
    let (mount, copy) = (built.dir.path().join("mnt"), built.dir.path().join("copy.tar"));
    fs::create_dir(&mount).unwrap();
    let script = r#"mount -t erofs -o ro,loop "$1" "$2" &&
        tar --xattrs --xattrs-include='*' --format=posix --numeric-owner -C "$2" -cf "$3" ."#;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", script, "sh"]);
    run(unshare.arg(&built.image).arg(&mount).arg(&copy));
    let (_again, seen) = build(&fs::read(&copy).unwrap());
    assert_eq!(paths(&seen), paths(&listing));
    for (path, expected) in &listing {
        assert!(&seen[path] == expected, "{}: {:?}", String::from_utf8_lossy(path), seen[path]);
    }
}
