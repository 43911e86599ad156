//! VMs that are copies of one that has booted before.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use aegis_e2e::{Aegis, Process, finish, wait_for, wait_output};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// `aegis template list --json`.
fn templates(aegis: &Aegis) -> Vec<Value> {
    let output = aegis.aegis(["template", "list", "--json"]).expect_ok();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits for the only template to be ready and returns its directory.
fn ready(aegis: &Aegis) -> PathBuf {
    let key = wait_for("the template", || {
        let list = templates(aegis);
        assert!(list.iter().all(|t| t["state"] != "failed"), "{list:?}");
        let key = list.first()?["key"].as_str()?.to_owned();
        (list.len() == 1 && list[0]["state"] == "ready").then_some(key)
    });
    aegis.home().join("data/templates").join(key)
}

fn start_kind(aegis: &Aegis, name: &str) -> String {
    aegis.start_sleeper(name);
    aegis.info(name)["start_kind"].as_str().unwrap().to_owned()
}

/// Whether any file below a directory has these bytes.
fn found_below(dir: &Path, bytes: &str) -> bool {
    let mut grep = Command::new("grep");
    grep.args(["-r", "-l", "-a", "-F", "-e", bytes]).arg(dir);
    match finish(grep).code {
        Some(0) => true,
        Some(1) => false,
        other => panic!("grep: {other:?}"),
    }
}

#[test]
fn runs_make_a_template_by_the_way_and_later_starts_use_it() {
    let aegis = Aegis::new().with_templates();
    // Several at once while it is made; each has something that nobody else may know.
    aegis.aegis(["up"]).expect_ok();
    let secret = "correct-horse-battery-staple";
    let runs: Vec<_> = (0..3)
        .map(|i| {
            let env = format!("TOKEN={secret}-{i}");
            let script = "echo $TOKEN | tee /dev/shm/kept /root/kept; sleep 1";
            aegis.spawn(["run", "--env", &env, "--", "sh", "-c", script])
        })
        .collect();
    let mut round = 0;
    let dir = loop {
        let exec = aegis.run_sh(&format!("echo meanwhile {round}")).expect_ok();
        assert_eq!(exec.out(), format!("meanwhile {round}\n"));
        round += 1;
        if templates(&aegis).iter().any(|t| t["state"] == "ready") {
            break ready(&aegis);
        }
    };
    for (i, run) in runs.into_iter().enumerate() {
        assert_eq!(wait_output(run).expect_ok().out(), format!("{secret}-{i}\n"));
    }
    assert_eq!(start_kind(&aegis, "box"), "template");
    aegis.exec_sh("box", "touch /root/file && test $(hostname) = box").expect_ok();
    aegis.run_sh("true").expect_ok();
    assert_eq!(templates(&aegis)[0]["loaded"], true, "its memory is held for the next run");

    assert!(found_below(&dir, "Linux version "), "the memory of a kernel is there");
    assert!(!found_below(&dir, secret), "a secret of a user is not");

    // It outlives its daemon.
    aegis.kill_daemon();
    aegis.aegis(["up"]).expect_ok();
    assert_eq!(ready(&aegis), dir);
    assert_eq!(start_kind(&aegis, "next"), "template");
    aegis.run_sh("test ! -e /root/kept && test ! -e /dev/shm/kept").expect_ok();
    // What was cloned can rest like everything else.
    aegis.exec_sh("next", "echo kept > /dev/shm/memory").expect_ok();
    aegis.instance("hibernate", "next");
    assert_eq!(aegis.exec_sh("next", "cat /dev/shm/memory").expect_ok().out(), "kept\n");
    assert_eq!(aegis.info("next")["start_kind"], "restore");
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn digest(path: &Path) -> Vec<u8> {
    let (mut file, mut hash, mut chunk) = (File::open(path).unwrap(), Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut chunk).unwrap() {
            0 => return hash.finalize().to_vec(),
            length => hash.update(&chunk[..length]),
        }
    }
}

#[test]
fn eight_clones_at_once_are_eight_different_machines_and_leave_the_template_alone() {
    let aegis = Aegis::new().with_templates();
    aegis.aegis(["up"]).expect_ok();
    // Small, so that eight of them are within the budget of any host.
    aegis.aegis(["template", "build", "--memory", "256"]).expect_ok();
    let dir = ready(&aegis);
    let before: Vec<_> = ["ram", "state", "upper.ext4"].iter().map(|f| digest(&dir.join(f))).collect();

    // They write much, free it again, and tell who they are.
    let script = "echo uuid $(cat /proc/sys/kernel/random/uuid); \
                  echo urandom $(head -c 16 /dev/urandom | xxd -p); \
                  echo machine-id $(cat /etc/machine-id); echo hostname $(hostname); echo clock $(date +%s); \
                  for i in $(seq 50); do cat /bin/busybox; done > /dev/shm/big; \
                  test $(stat -c %s /dev/shm/big) -gt 90000000 && rm /dev/shm/big && echo dirtied; sleep 100000";
    let began = now();
    let runs: Vec<_> = (0..8)
        .map(|i| {
            let name = format!("clone-{i}");
            let args = ["run", "--memory", "256", "--name", &name, "--", "sh", "-c", script];
            (aegis.spawn(args), name)
        })
        .collect();
    let mut seen = BTreeSet::new();
    for (run, name) in runs {
        let said = wait_for(&format!("{name} to have written much"), || {
            let said = aegis.aegis(["logs", &name]).out();
            said.contains("dirtied").then_some(said)
        });
        let ended = now();
        assert_eq!(aegis.info(&name)["start_kind"], "template", "{name}");
        for line in said.lines().filter(|line| *line != "dirtied") {
            let (what, value) = line.split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
            if what == "clock" {
                let clock: u64 = value.parse().unwrap();
                assert!((began - 5..=ended + 5).contains(&clock), "{name}: {began} {clock} {ended}");
            } else {
                assert!(value.len() >= 7, "{name}: {line}");
                assert!(seen.insert(line.to_owned()), "two clones have {line}");
            }
        }
        Process { pid: run.id(), program: "aegis".into() }.signal("INT");
        wait_output(run).expect_code(130);
    }
    assert_eq!(seen.len(), 8 * 4, "{seen:?}");
    let after: Vec<_> = ["ram", "state", "upper.ext4"].iter().map(|f| digest(&dir.join(f))).collect();
    assert!(before == after, "a clone changed the template");
}

#[test]
fn templates_are_made_and_pruned_on_request() {
    let aegis = Aegis::new().with_templates();
    aegis.aegis(["up"]).expect_ok();
    // Two who ask at the same time get the same one.
    let builds: Vec<_> = (0..2).map(|_| aegis.spawn(["template", "build"])).collect();
    for build in builds {
        let said = wait_output(build).expect_ok().out();
        assert!(said.contains("ready"), "{said}");
    }
    let dir = ready(&aegis);
    assert!(aegis.processes().iter().all(|p| p.program == "aegisd"), "{:?}", aegis.processes());
    let kept = aegis.aegis(["template", "prune", "--older-than", "1h"]).expect_ok().out();
    assert!(kept.contains("Pruned 0"), "{kept}");
    assert_eq!(start_kind(&aegis, "first"), "template");
    let pruned = aegis.aegis(["template", "prune"]).expect_ok().out();
    assert!(pruned.contains("Pruned 1"), "{pruned}");
    assert!(templates(&aegis).is_empty() && !dir.exists());
    // Its clones live on, and go on from their own memory.
    aegis.exec_sh("first", "echo kept > /dev/shm/memory").expect_ok();
    aegis.instance("hibernate", "first");
    assert_eq!(aegis.exec_sh("first", "cat /dev/shm/memory").expect_ok().out(), "kept\n");
    let refused = Aegis::new();
    refused.aegis(["up"]).expect_ok();
    assert_ne!(refused.aegis(["template", "build"]).code, Some(0), "they are switched off");
}

#[test]
fn a_broken_template_means_a_boot_that_says_so_and_another_template() {
    let aegis = Aegis::new().with_templates();
    aegis.aegis(["up"]).expect_ok();
    aegis.aegis(["template", "build"]).expect_ok();
    let dir = ready(&aegis);
    let truncate = |file: &str| {
        File::options().write(true).open(dir.join(file)).unwrap().set_len(4096).unwrap();
    };
    truncate("ram");
    assert_eq!(start_kind(&aegis, "box"), "cold");
    let log = aegis.logs("box").err();
    assert!(log.contains("template") && log.contains("4096 bytes"), "{log}");
    aegis.exec_sh("box", "true").expect_ok();
    // The next one is made by the way.
    wait_for("another template", || {
        let whole = fs::metadata(dir.join("ram")).is_ok_and(|meta| meta.len() == 512 << 20);
        (whole && templates(&aegis).iter().any(|t| t["state"] == "ready")).then_some(())
    });
    assert_eq!(start_kind(&aegis, "next"), "template");
    // A run as well: it must not notice.
    truncate("state");
    let run = aegis.run_sh("echo fine").expect_ok();
    assert_eq!(run.out(), "fine\n");
    let log = fs::read_to_string(aegis.home().join("data/aegisd.log")).unwrap();
    assert!(log.contains("template"), "{log}");
}
