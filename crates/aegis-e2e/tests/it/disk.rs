//! Sizes of disks: the guest sees what was asked for, can write no more, and it can grow.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use aegis_e2e::{Aegis, wait_for};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Size of the root file system in MiB, and free space of it.
const DF: &str = "df -k / | awk 'NR > 1 { print int($2 / 1024), int($4 / 1024) }'";
/// Writes until it fails, and prints what was written in bytes. Random bytes, so that nothing is a hole.
const FILL: &str =
    "dd if=/dev/urandom of=/root/full bs=64k 2>/tmp/why; cat /tmp/why >&2; sync; stat -c %s /root/full";

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().map(|word| word.parse().unwrap_or_else(|_| panic!("{text}"))).collect()
}

/// The file system of a disk with so many MiB has this size: its inodes and its journal take the rest.
#[track_caller]
fn assert_size(df: &str, mib: u64) {
    let size = numbers(df)[0];
    assert!(size < mib && size >= mib - mib / 20 - 16, "{size} MiB of {mib}");
}

fn disk(aegis: &Aegis, name: &str) -> PathBuf {
    let id = aegis.info(name)["id"].as_str().unwrap().to_owned();
    aegis.home().join("data/instances").join(id).join("upper.ext4")
}

/// The template with a disk of so many MiB is there.
fn wait_template(aegis: &Aegis, mib: u64) {
    wait_for("the template", || {
        let output = aegis.aegis(["template", "list", "--json"]).expect_ok();
        let list: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert!(list.iter().all(|t| t["state"] != "failed"), "{list:?}");
        list.iter().any(|t| t["state"] == "ready" && t["disk_mb"] == mib).then_some(())
    });
}

/// Fills the disk of a running instance, which has 300 MiB.
fn fill(aegis: &Aegis, name: &str) {
    assert_size(&aegis.exec_sh(name, DF).expect_ok().out(), 300);
    let filled = aegis.exec_sh(name, FILL).expect_ok();
    assert!(filled.err().contains("No space left on device"), "{}", filled.err());
    let written = numbers(&filled.out())[0];
    assert!((250 * MIB..300 * MIB).contains(&written), "{written}");
    let file = fs::metadata(disk(aegis, name)).unwrap();
    assert_eq!(file.len(), 300 * MIB);
    assert!(file.blocks() * 512 <= 300 * MIB + MIB && file.blocks() * 512 >= written, "{}", file.blocks());
    assert_eq!(aegis.stats(name)["disk_bytes"], file.blocks() * 512);
    // The instance is well, and has its space back.
    let again = format!("rm /root/full && echo back > /root/file && cat /root/file; {DF}");
    let out = aegis.exec_sh(name, &again).expect_ok().out();
    let free = numbers(out.strip_prefix("back\n").unwrap())[1];
    assert!(free > 250, "{free}");
}

#[test]
fn a_run_gets_no_more_disk_than_it_asked_for() {
    let aegis = Aegis::new();
    let script = format!("{DF}; {FILL}; exit 3");
    let run = aegis.aegis(["run", "--disk", "300M", "--", "sh", "-c", &script]).expect_code(3);
    assert!(run.err().contains("No space left on device"), "{}", run.err());
    let [size, free, written] = numbers(&run.out())[..] else { panic!("{}", run.out()) };
    assert!((270..300).contains(&size) && free > 250, "{size} {free}");
    assert!((250 * MIB..300 * MIB).contains(&written), "{written}");
    // Nobody asked: 10 GiB, of which nearly nothing is taken.
    let out = aegis.run_sh(DF).expect_ok().out();
    assert_size(&out, 10 << 10);
}

#[test]
fn a_disk_is_full_at_its_size_and_the_file_of_the_host_grows_no_further() {
    let aegis = Aegis::new();
    aegis.start_with("box", &["--disk", "300M"], &["sleep", "100000"]);
    fill(&aegis, "box");
    // A hostile guest goes past the file system. The device ends where the file does.
    let past = "dev=/dev/$(basename $(dirname $(grep -l aegis-upper /sys/block/*/serial))); \
        cat /sys/block/$(basename $dev)/size; dd if=/dev/urandom of=$dev bs=1M seek=300 count=1";
    let refused = aegis.exec_sh("box", past);
    assert_eq!(refused.out(), format!("{}\n", 300 * MIB / 512));
    assert_ne!(refused.code, Some(0), "{}", refused.err());
    assert_eq!(fs::metadata(disk(&aegis, "box")).unwrap().len(), 300 * MIB);
}

#[test]
fn copies_of_templates_have_the_disk_that_they_asked_for() {
    let aegis = Aegis::new().with_templates();
    let start = |name: &str, size: &str, mib: u64, kind: &str| {
        aegis.start_with(name, &["--disk", size], &["sleep", "100000"]);
        assert_eq!(aegis.info(name)["start_kind"], kind, "{name}");
        assert_size(&aegis.exec_sh(name, DF).expect_ok().out(), mib);
    };
    // One template for what is smaller than the default, and one for the rest.
    start("first", "64M", 64, "cold");
    wait_template(&aegis, 64);
    start("small", "300M", 300, "template");
    fill(&aegis, "small");
    start("medium", "5G", 5 << 10, "template");
    start("large", "40G", 40 << 10, "cold");
    wait_template(&aegis, 10 << 10);
    start("default", "10G", 10 << 10, "template");
    start("larger", "1T", 1 << 20, "template");
    assert!(
        fs::metadata(disk(&aegis, "larger")).unwrap().blocks() * 512 < 256 * MIB,
        "what was cleared is a hole"
    );
    let run = aegis.aegis(["run", "--disk", "300M", "--", "sh", "-c", DF]).expect_ok();
    assert_size(&run.out(), 300);
    // They boot from their disks like all others.
    for (name, mib) in [("small", 300), ("larger", 1 << 20)] {
        aegis.exec_sh(name, "echo kept > /root/kept").expect_ok();
        aegis.instance("restart", name);
        aegis.wait_state(name, "running");
        let out = aegis.exec_sh(name, &format!("{DF}; cat /root/kept")).expect_ok().out();
        assert_size(out.strip_suffix("kept\n").unwrap(), mib);
    }
}

#[test]
fn a_disk_grows_with_an_update_and_keeps_what_is_on_it() {
    let aegis = Aegis::new().with_templates();
    aegis.start_with("box", &["--disk", "128M"], &["sleep", "100000"]);
    let sum = "sha256sum /root/data";
    let before = aegis
        .exec_sh("box", &format!("dd if=/dev/urandom of=/root/data bs=1M count=90 2>/dev/null && {sum}"))
        .expect_ok()
        .out();
    let shrink = aegis.aegis(["update", "box", "--disk", "100M"]).expect_code(1);
    assert!(
        shrink.err().contains("128 MiB") && shrink.err().contains("cannot shrink to 100 MiB"),
        "{}",
        shrink.err()
    );

    let told = aegis.aegis(["update", "box", "--disk", "600M"]).expect_ok();
    assert!(told.out().contains("aegis instance restart box"), "{}", told.out());
    assert_eq!(aegis.info("box")["disk_mb"], 600);
    // Its memory knows the old disk.
    aegis.instance("hibernate", "box");
    assert_size(&aegis.exec_sh("box", DF).expect_ok().out(), 128);
    assert_eq!(aegis.info("box")["start_kind"], "restore");
    aegis.instance("restart", "box");
    aegis.wait_state("box", "running");
    let after = aegis.exec_sh("box", &format!("{sum}; {DF}")).expect_ok().out();
    assert_size(after.strip_prefix(&before).expect("what was on it is on it"), 600);
    aegis.exec_sh("box", "dd if=/dev/urandom of=/root/more bs=1M count=300").expect_ok();

    // A grown disk rests like every other one, and grows again while its instance is hibernated.
    aegis.instance("hibernate", "box");
    let warned = aegis.aegis(["update", "box", "--disk", "700"]).expect_ok();
    assert!(warned.err().contains("700 MiB from its next restart on"), "{}", warned.err());
    let out = aegis.exec_sh("box", &format!("{sum}; stat -c %s /root/more; {DF}")).expect_ok().out();
    let rest = out.strip_prefix(&before).unwrap().strip_prefix("314572800\n").unwrap();
    assert_size(rest, 600);
    aegis.instance("stop", "box");
    let out = aegis.exec_sh("box", &format!("{sum}; {DF}")).expect_ok().out();
    assert_size(out.strip_prefix(&before).unwrap(), 700);
}

#[test]
fn sizes_that_make_no_sense_are_refused_before_anything_is_made() {
    let aegis = Aegis::new();
    for (size, why) in [
        ("63M", "between 64 and 1048576"),
        ("2T", "between 64 and 1048576"),
        ("0", "between 64 and 1048576"),
        ("lots", "write a number of MiB"),
        ("65537K", "whole number of MiB"),
    ] {
        let refused = aegis.aegis(["run", "--disk", size, "--", "true"]).expect_code(2);
        assert!(refused.err().contains(why), "{size}: {}", refused.err());
    }
    let daemon = Aegis::new().with_env("AEGIS_DEFAULT_DISK_MB", "200");
    assert_size(&daemon.run_sh(DF).expect_ok().out(), 200);
}
