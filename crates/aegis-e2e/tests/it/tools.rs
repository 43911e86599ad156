//! `aegis cp` and `aegis update` against real guests.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use aegis_e2e::Aegis;

#[test]
fn copies_have_the_same_hash_mode_and_owner_both_ways() {
    let aegis = Aegis::new();
    aegis.start_sleeper("web");
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let content: Vec<u8> =
        (0..500_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(tree.join("data"), &content).unwrap();
    fs::set_permissions(tree.join("data"), Permissions::from_mode(0o750)).unwrap();
    symlink("data", tree.join("link")).unwrap();
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.set_len(2 << 30).unwrap();
    sparse.write_all_at(b"end", (2 << 30) - 3).unwrap();
    let tree = tree.to_str().unwrap();
    aegis.aegis(["cp", tree, "web:/usr/new"]).expect_ok();
    let seen = aegis.exec_sh(
        "web",
        "cd /usr/new && sha256sum < data && stat -c '%a %u:%g %Y' data && readlink link && stat -c %s sparse && \
         test $(stat -c %b sparse) -lt 1000 && tail -c 3 sparse && chown 12:34 data && cp -a data /workspace/",
    );
    let seen = seen.expect_ok().out();
    let digest = {
        use sha2::Digest as _;
        sha2::Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let mtime = fs::metadata(Path::new(tree).join("data")).unwrap().mtime();
    assert_eq!(seen.trim_end(), format!("{digest}  -\n750 0:0 {mtime}\ndata\n{}\nend", 2_u64 << 30));

    let back = dir.path().join("back");
    aegis.aegis(["cp", "-a", "web:/usr/new", back.to_str().unwrap()]).expect_ok();
    assert!(fs::read(back.join("data")).unwrap() == content);
    let found = fs::metadata(back.join("data")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.mtime()), (0o750, mtime));
    // Only root can give files away.
    if fs::metadata(dir.path()).unwrap().uid() == 0 {
        assert_eq!((found.uid(), found.gid()), (12, 34));
    }
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("data"));
    let sparse = fs::metadata(back.join("sparse")).unwrap();
    assert!(sparse.len() == 2 << 30 && sparse.blocks() < 1000);
    let one = dir.path().join("one");
    aegis.aegis(["cp", "web:/workspace/data", one.to_str().unwrap()]).expect_ok();
    assert!(fs::read(&one).unwrap() == content);
    assert_eq!(fs::metadata(&one).unwrap().uid(), fs::metadata(dir.path()).unwrap().uid());
    let error = aegis.aegis(["cp", "web:/none", one.to_str().unwrap()]).expect_code(1).err();
    assert!(error.contains("/none"), "{error}");
}

#[test]
fn an_update_is_in_force_after_the_next_start() {
    let aegis = Aegis::new();
    aegis.start_with("web", &["--memory", "256", "--env", "OLD=1"], &["sleep", "100000"]);
    let args = ["update", "web", "--memory", "384", "--env", "NEW=x", "--unset-env", "OLD", "--never-pause"];
    let told = aegis.aegis(args).expect_ok().out();
    assert!(told.contains("aegis instance restart web"), "{told}");
    let info = aegis.info("web");
    assert_eq!((info["memory_mb"].as_u64(), info["never_pause"].as_bool()), (Some(384), Some(true)));
    let look = "echo ${OLD-none} ${NEW-none}; awk '/MemTotal/ { print ($2 > 300000) }' /proc/meminfo";
    assert_eq!(aegis.exec_sh("web", &format!("touch /kept; {look}")).expect_ok().out(), "1 none\n0\n");
    aegis.instance("restart", "web");
    aegis.wait_state("web", "running");
    assert_eq!(aegis.exec_sh("web", &format!("{look}; ls /kept")).expect_ok().out(), "none x\n1\n/kept\n");
    let inspected: serde_json::Value =
        serde_json::from_str(&aegis.aegis(["inspect", "web"]).expect_ok().out()).unwrap();
    assert_eq!(inspected["memory_mb"], 384);
    assert!(aegis.aegis(["inspect", "base"]).expect_ok().out().contains("sha256:"));
}
