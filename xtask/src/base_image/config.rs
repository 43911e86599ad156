//! What Debian's maintainer scripts would have made, made here instead: they run as root on an installed system.

use anyhow::Result;

use super::tree::{Node, Tree};

/// Completes the tree of unpacked packages to a system that programs can live in.
pub(super) fn apply(tree: &mut Tree) -> Result<()> {
    directories(tree);
    accounts(tree)?;
    certificates(tree);
    for (from, to) in [
        ("usr/share/base-files/profile", "etc/profile"),
        ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
        ("usr/share/base-files/dot.profile", "root/.profile"),
        ("usr/share/base-files/dot.bashrc", "root/.bashrc"),
    ] {
        let contents = tree.contents(from)?.to_vec();
        tree.file(to, 0o644, contents);
    }
    // Host name and hosts are the harness's to write; there is no network to resolve names in.
    tree.file("etc/resolv.conf", 0o644, "");
    tree.file("etc/shells", 0o644, "/bin/sh\n/bin/dash\n/bin/bash\n");
    tree.file("etc/machine-id", 0o444, "");
    tree.file("etc/fstab", 0o644, "");
    tree.symlink("etc/mtab", "../proc/self/mounts");
    tree.symlink("etc/localtime", "/usr/share/zoneinfo/Etc/UTC");
    tree.file("etc/timezone", 0o644, "Etc/UTC\n");
    tree.symlink("usr/bin/python", "python3");
    if !tree.contains("usr/bin/sh") {
        tree.symlink("usr/bin/sh", "dash");
    }
    Ok(())
}

fn directories(tree: &mut Tree) {
    for directory in ["dev", "proc", "sys", "run", "mnt", "var/log"] {
        tree.directory(directory, 0o755);
    }
    tree.directory("tmp", 0o1777);
    tree.directory("var/tmp", 0o1777);
    tree.directory("root", 0o700);
    tree.symlink("var/run", "/run");
    tree.symlink("var/lock", "/run/lock");
}

fn accounts(tree: &mut Tree) -> Result<()> {
    for name in ["passwd", "group"] {
        let contents = tree.contents(&format!("usr/share/base-passwd/{name}.master"))?.to_vec();
        tree.file(&format!("etc/{name}"), 0o644, contents);
    }
    Ok(())
}

/// One bundle of all certificate authorities, where OpenSSL and those who imitate it look.
fn certificates(tree: &mut Tree) {
    let mut bundle = Vec::new();
    for (_, node) in tree.below("usr/share/ca-certificates").filter(|(path, _)| path.ends_with(".crt")) {
        if let Node::File(certificate) = node {
            bundle.extend_from_slice(certificate.trim_ascii_end());
            bundle.push(b'\n');
        }
    }
    tree.file("etc/ssl/certs/ca-certificates.crt", 0o644, bundle);
    tree.symlink("usr/lib/ssl/certs", "/etc/ssl/certs");
    tree.symlink("usr/lib/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt");
}
