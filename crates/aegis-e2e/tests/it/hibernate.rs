//! Memory that outlives its VM.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;

use aegis_e2e::{Aegis, finish, wait_for};
use serde_json::Value;

use crate::guest::{COUNTER, count};

#[test]
fn smoke_a_hibernated_process_goes_on_when_somebody_connects() {
    let aegis = Aegis::new();
    aegis.start_with("box", &["--expose", "80"], COUNTER);
    let first = count(&aegis, "box");
    aegis.instance("hibernate", "box");
    let info = aegis.info("box");
    assert_eq!((info["state"].as_str(), info["enabled"].as_bool()), (Some("hibernated"), Some(true)));
    assert!(aegis.processes().iter().all(|p| p.program == "aegisd"), "{:?}", aegis.processes());
    assert_eq!(count(&aegis, "box"), first.next());
    let info = aegis.info("box");
    assert_eq!((info["state"].as_str(), info["start_kind"].as_str()), (Some("running"), Some("restore")));
}

/// Counts in the log, in a tmpfs and in the memory of a server.
const BUSY: &str = "python3 -SE -c \"$0\" & echo $$ > /dev/shm/pid; i=0; while :; do \
    i=$((i+1)); echo $i > /dev/shm/count; echo line $i; sleep 0.1; done";

#[test]
fn memory_processes_and_log_survive_every_kind_of_rest() {
    let aegis = Aegis::new();
    let command = ["sh", "-c", BUSY, COUNTER[3]];
    aegis.start_with("box", &["--expose", "80"], &command);
    let tmpfs =
        || aegis.exec_sh("box", "cat /dev/shm/count").expect_ok().out().trim().parse::<u64>().unwrap();
    let pids = || {
        aegis.exec_sh("box", "pidof python3; cat /dev/shm/pid; kill -0 $(cat /dev/shm/pid)").expect_ok().out()
    };
    let (mut last, pids_before) = (count(&aegis, "box"), pids());
    let mut counted = tmpfs();
    let rests: [(&str, &dyn Fn()); 5] = [
        ("pause", &|| aegis.instance("pause", "box")),
        ("hibernation", &|| aegis.instance("hibernate", "box")),
        ("a second one", &|| aegis.instance("hibernate", "box")),
        ("a paused one", &|| {
            aegis.instance("pause", "box");
            aegis.instance("hibernate", "box");
        }),
        ("down and up", &|| {
            aegis.down();
            aegis.aegis(["up"]).expect_ok();
            assert_eq!(aegis.info("box")["state"], "hibernated");
        }),
    ];
    for (rest, go) in rests {
        go();
        let now = count(&aegis, "box");
        assert_eq!(now, last.next(), "after {rest}");
        last = now;
        assert_eq!(pids(), pids_before, "after {rest}");
        let now = wait_for("the loop to go on", || Some(tmpfs()).filter(|now| *now > counted));
        // It does not count while it rests, nor begin anew.
        assert!(now >= counted, "after {rest}");
        counted = now;
    }
    // No line was lost, none came twice.
    let lines: Vec<u64> =
        aegis.logs("box").out().lines().filter_map(|l| l.strip_prefix("line ")?.parse().ok()).collect();
    assert!(lines.len() as u64 >= counted.saturating_sub(1));
    assert_eq!(lines, (1..=lines.len() as u64).collect::<Vec<_>>());
}

/// Hibernates, damages what was saved, and expects a boot that says this.
#[track_caller]
fn damaged(aegis: &Aegis, what: &str, damage: impl FnOnce(&Path), reason: &str) {
    aegis.exec_sh("box", "echo kept > /root/disk; echo lost > /dev/shm/memory").expect_ok();
    aegis.instance("hibernate", "box");
    let dir = aegis.memory_dir("box");
    assert!(dir.join("saved.json").exists());
    let logged = aegis.logs("box").err().len();
    damage(&dir);
    let output = aegis.exec_sh("box", "cat /root/disk; ls /dev/shm").expect_ok();
    assert_eq!(output.out(), "kept\n", "{what}");
    assert_eq!(aegis.info("box")["start_kind"], "cold", "{what}");
    let log = aegis.logs("box").err();
    assert!(log[logged..].contains(reason), "{what}: {}", &log[logged..]);
}

fn edit_saved(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("saved.json");
    let mut saved: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut saved);
    fs::write(&path, serde_json::to_vec(&saved).unwrap()).unwrap();
}

#[test]
fn damaged_files_of_a_saved_vm_mean_a_cold_boot_that_says_so() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    let state = |dir: &Path| {
        let mut file = File::options().read(true).write(true).open(dir.join("state")).unwrap();
        let mut byte = [0];
        file.seek(SeekFrom::Start(2000)).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(2000)).unwrap();
        file.write_all(&[byte[0] ^ 1]).unwrap();
    };
    damaged(&aegis, "device state", state, "the state of its devices is damaged");
    let description = |dir: &Path| fs::write(dir.join("saved.json"), "{ half a descrip").unwrap();
    damaged(&aegis, "description", description, "saved.json is damaged");
}

#[test]
fn a_truncated_memory_or_another_boot_of_the_host_means_a_cold_boot_that_says_so() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    let truncate = |dir: &Path| {
        File::options().write(true).open(dir.join("ram")).unwrap().set_len(100 << 20).unwrap();
    };
    damaged(&aegis, "memory", truncate, "its memory has 104857600 bytes instead of");
    let reboot = |dir: &Path| {
        edit_saved(dir, |saved| {
            saved["durable"] = false.into();
            saved["host_boot"] = "an-earlier-boot".into();
        });
    };
    damaged(&aegis, "host", reboot, "the host was restarted before its memory was safe on the disk");
}

#[test]
fn a_memory_full_of_zeros_means_a_cold_boot_that_says_so() {
    let aegis = Aegis::new().with_env("AEGIS_BOOT_TIMEOUT", "20s");
    aegis.start_sleeper("box");
    let wipe = |dir: &Path| {
        let ram = File::options().write(true).open(dir.join("ram")).unwrap();
        let length = ram.metadata().unwrap().len();
        ram.set_len(0).unwrap();
        ram.set_len(length).unwrap();
    };
    // Nobody reads all memory before it is used: it is the guest that does not answer.
    damaged(&aegis, "zeros", wipe, "the saved state could not be used");
}

/// A small file system of its own, for as long as the value lives.
struct SmallDisk {
    mount: tempfile::TempDir,
    _image: tempfile::NamedTempFile,
}

impl SmallDisk {
    /// A file system of this size.
    fn new(mib: u64) -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(mib << 20).unwrap();
        let run = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(args);
            finish(command).expect_ok();
        };
        let path = image.path().to_str().unwrap();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", path]);
        // Sockets have short paths.
        let mount = tempfile::Builder::new().prefix("small-").tempdir().unwrap();
        run("mount", &["-o", "loop", path, mount.path().to_str().unwrap()]);
        Self { mount, _image: image }
    }

    fn path(&self) -> &Path {
        self.mount.path()
    }

    /// Leaves so many KiB free.
    fn fill(&self, free_kib: u64) {
        let free = || {
            let output = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(self.path()).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let mut numbers = text.split_whitespace().map(|n| n.parse::<u64>().unwrap());
            numbers.next().unwrap() * numbers.next().unwrap()
        };
        let filler = File::options().append(true).create(true).open(self.path().join("filler")).unwrap();
        let mut writer = std::io::BufWriter::new(&filler);
        while free() > free_kib << 10 {
            let amount = (free() - (free_kib << 10)).min(1 << 20);
            writer.write_all(&vec![1; amount as usize]).unwrap();
            writer.flush().unwrap();
            filler.sync_all().unwrap();
        }
    }

    fn empty(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Root can make small disks where there are loop devices; elsewhere this cannot be tried, and says so.
fn small_disk(mib: u64) -> Option<SmallDisk> {
    let root = finish({
        let mut id = Command::new("id");
        id.arg("-u");
        id
    });
    let why = if root.out().trim() != "0" {
        "only root may mount"
    } else if !Path::new("/dev/loop-control").exists() {
        "there are no loop devices"
    } else {
        return Some(SmallDisk::new(mib));
    };
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
    {
        eprintln!("not tried: {why}");
    }
    None
}

#[test]
fn a_full_disk_does_not_lose_a_vm_that_is_to_be_hibernated() {
    let Some(disk) = small_disk(600) else { return };
    {
        let aegis = Aegis::new_in(disk.path());
        aegis.start_with("box", &["--expose", "80", "--memory", "256"], COUNTER);
        let first = count(&aegis, "box");
        // Nearly full: there is no room for the memory of another one.
        disk.fill(20 << 10);
        aegis.launch("other", &["--memory", "256"], &["true"]).expect_ok();
        let info = wait_for("the other one to fail", || {
            let info = aegis.info("other");
            (info["state"] == "stopped").then_some(info)
        });
        assert_eq!(info["stop_reason"], "boot_failed", "{info}");
        assert!(info["last_error"].as_str().unwrap().contains("No space left"), "{info}");
        // Full.
        disk.fill(0);
        let refused = aegis.launch("another", &[], &["true"]).expect_code(1);
        assert!(refused.err().contains("disk is full"), "{}", refused.err());
        for _ in 0..5 {
            let refused = aegis.aegis(["instance", "hibernate", "box"]).expect_code(1);
            assert!(refused.err().contains("No space left"), "{}", refused.err());
            assert_eq!(aegis.info("box")["state"], "running");
        }
        assert!(aegis.logs("box").err().contains("cannot hibernate: "), "{}", aegis.logs("box").err());
        // Memory was reserved when the VM started: the guest may write all of it.
        let script = "dd if=/dev/zero of=/dev/shm/big bs=1M count=80 2>/dev/null; rm /dev/shm/big";
        aegis.exec_sh("box", script).expect_ok();
        assert_eq!(count(&aegis, "box"), first.next());
        disk.empty();
        aegis.instance("hibernate", "box");
        assert_eq!(aegis.info("box")["state"], "hibernated");
        assert_eq!(count(&aegis, "box"), first.next().next());
    }
}
