//! Opposite wishes at the same time.

use std::thread;

use aegis_e2e::{Aegis, net, wait_for, wait_output};

use crate::guest::{COUNTER, count};

/// No process but the daemon, no runtime directory, no memory.
#[track_caller]
fn assert_no_vm(aegis: &Aegis) {
    // A command answers when the state is reached; the last process may still be leaving the process table.
    wait_for("the VM's processes to end", || {
        aegis.processes().iter().all(|p| p.program == "aegisd").then_some(())
    });
    let run = std::fs::read_dir(aegis.home().join("run")).map(|dir| dir.count()).unwrap_or(0);
    assert_eq!(run, 0, "a runtime directory is left");
}

fn assert_disabled(aegis: &Aegis, when: &str) {
    let info = aegis.info("box");
    assert_eq!((info["state"].as_str(), info["enabled"].as_bool()), (Some("stopped"), Some(false)), "{when}");
    assert_no_vm(aegis);
    assert!(!aegis.memory_dir("box").exists(), "{when}: memory is left");
}

fn assert_deleted(aegis: &Aegis, when: &str) {
    assert!(aegis.list().is_empty(), "{when}");
    assert_no_vm(aegis);
    let left = std::fs::read_dir(aegis.home().join("data/instances")).map(|d| d.count()).unwrap_or(0);
    assert_eq!(left, 0, "{when}: files are left");
}

#[test]
fn who_connects_while_it_goes_to_rest_is_answered() {
    let aegis = Aegis::new();
    aegis.start_with("box", &["--expose", "80"], COUNTER);
    let mut last = count(&aegis, "box");
    let port = aegis.port("box", 80);
    for round in 0..10 {
        for action in ["pause", "hibernate"] {
            let rest = aegis.spawn(["instance", action, "box"]);
            let clients: Vec<_> = (0..3).map(|_| thread::spawn(move || net::ask(port, "?\n"))).collect();
            // It is refused when somebody was faster; nothing worse may happen.
            let rest = wait_output(rest);
            assert!(matches!(rest.code, Some(0 | 1)), "round {round}: {action}: {rest:?}");
            // Wakes it, should it rest now with connections that had been answered before.
            let now = count(&aegis, "box");
            for client in clients {
                match client.join().unwrap() {
                    Ok(answer) => assert!(answer.ends_with(" ?\n"), "round {round}: {action}: {answer:?}"),
                    // Its connection was there, and then the memory was saved on request: the flow is dead.
                    Err(e) if action == "hibernate" => {
                        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "round {round}");
                    }
                    Err(e) => panic!("round {round}: {action}: {e}"),
                }
            }
            assert!(now.pid == last.pid && now.count > last.count, "round {round}: {action}: {now:?}");
            last = now;
        }
    }
    assert_eq!(aegis.stats("box")["starts"]["cold"], 1, "its memory was never lost");
}

#[test]
fn a_pause_on_the_heels_of_a_wake_is_one_after_the_other() {
    let aegis = Aegis::new();
    aegis.start_with("box", &["--expose", "80"], COUNTER);
    let mut last = count(&aegis, "box");
    let port = aegis.port("box", 80);
    for round in 0..10 {
        aegis.instance(if round % 3 == 0 { "hibernate" } else { "pause" }, "box");
        let client = thread::spawn(move || net::ask(port, "?\n"));
        let pause = wait_output(aegis.spawn(["instance", "pause", "box"]));
        assert!(matches!(pause.code, Some(0 | 1)), "round {round}: {pause:?}");
        // Wakes it, should it be paused with a connection that had been answered before.
        count(&aegis, "box");
        client.join().unwrap().unwrap();
        let now = count(&aegis, "box");
        assert_eq!((now.pid, now.count), (last.pid, last.count + 3), "round {round}");
        last = now;
    }
    assert_eq!(aegis.info("box")["state"], "running");
}

#[test]
fn disabling_and_deleting_during_the_boot_leaves_nothing() {
    let aegis = Aegis::new();
    aegis.aegis(["up"]).expect_ok();
    aegis.launch("box", &[], &["sleep", "100000"]).expect_ok();
    aegis.instance("disable", "box");
    assert_disabled(&aegis, "at once");
    aegis.instance("start", "box");
    wait_for("the VMM", || aegis.processes().iter().any(|p| p.program.starts_with("qemu")).then_some(()));
    aegis.instance("disable", "box");
    assert_disabled(&aegis, "with a VMM");
    aegis.instance("start", "box");
    aegis.instance("delete", "box");
    assert_deleted(&aegis, "at once");
    aegis.launch("box", &[], &["sleep", "100000"]).expect_ok();
    wait_for("the VMM", || aegis.processes().iter().any(|p| p.program.starts_with("qemu")).then_some(()));
    aegis.instance("delete", "box");
    assert_deleted(&aegis, "with a VMM");
}

#[test]
fn disabling_and_deleting_during_hibernation_or_restore_leaves_nothing() {
    let aegis = Aegis::new();
    let end = |action: &str, when: &str| {
        aegis.instance(action, "box");
        match action {
            "disable" => assert_disabled(&aegis, when),
            _ => assert_deleted(&aegis, when),
        }
    };
    for action in ["disable", "delete"] {
        // During the hibernation: what was asked for last wins.
        aegis.start_sleeper("box");
        let hibernate = aegis.spawn(["instance", "hibernate", "box"]);
        end(action, "hibernation");
        wait_output(hibernate);
        if action == "delete" {
            aegis.start_sleeper("box");
        } else {
            aegis.instance("start", "box");
            aegis.wait_state("box", "running");
        }
        // During the restore.
        aegis.instance("hibernate", "box");
        let exec = aegis.spawn(["exec", "box", "--", "true"]);
        wait_for("the restore", || (aegis.info("box")["state"] != "hibernated").then_some(()));
        end(action, "restore");
        wait_output(exec);
        // And hibernated.
        if action == "delete" {
            aegis.start_sleeper("box");
        } else {
            aegis.instance("start", "box");
            aegis.wait_state("box", "running");
        }
        aegis.instance("hibernate", "box");
        end(action, "hibernated");
        if action == "disable" {
            aegis.instance("delete", "box");
        }
    }
}
