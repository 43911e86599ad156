//! The daemon is killed while instances rest, go to rest or wake up.

use std::thread;

use aegis_e2e::{Aegis, net, wait_for, wait_output};

use crate::guest::{COUNTER, Count, count};

/// An instance that has been asked once.
fn counting() -> (Aegis, Count) {
    let aegis = Aegis::new();
    aegis.start_with("box", &["--expose", "80"], COUNTER);
    let first = count(&aegis, "box");
    (aegis, first)
}

fn next_daemon(aegis: &Aegis) {
    aegis.kill_daemon();
    aegis.aegis(["up"]).expect_ok();
}

/// At most one VM, and it is the one that the daemon knows of.
#[track_caller]
fn assert_consistent(aegis: &Aegis) {
    let count_of = |program: &str| aegis.processes().iter().filter(|p| p.program == program).count();
    let live = usize::from(aegis.info("box")["state"] == "running");
    wait_for("one VM and no more", || {
        (count_of("aegis-vmm-worker") == live && count_of("qemu-system-x86_64") == live).then_some(())
    });
}

#[test]
fn killed_while_a_vm_starts() {
    let aegis = Aegis::new();
    aegis.aegis(["up"]).expect_ok();
    aegis.launch("box", &["--expose", "80"], COUNTER).expect_ok();
    next_daemon(&aegis);
    // Wherever it was: whoever connects is answered, by one VM.
    let first = count(&aegis, "box");
    assert_consistent(&aegis);
    assert_eq!(count(&aegis, "box"), first.next());
    // The same with a VMM.
    aegis.instance("stop", "box");
    let exec = aegis.spawn(["exec", "box", "--", "true"]);
    wait_for("the VMM", || aegis.processes().iter().any(|p| p.program.starts_with("qemu")).then_some(()));
    next_daemon(&aegis);
    wait_output(exec);
    let first = count(&aegis, "box");
    assert_consistent(&aegis);
    assert_eq!(count(&aegis, "box"), first.next());
}

#[test]
fn killed_while_it_is_running_paused_or_hibernated() {
    let (aegis, mut last) = counting();
    let mut goes_on = |when: &str| {
        let now = count(&aegis, "box");
        assert_eq!(now, last.next(), "{when}");
        assert_consistent(&aegis);
        last = now;
    };
    next_daemon(&aegis);
    aegis.wait_state("box", "running");
    goes_on("running");
    aegis.instance("pause", "box");
    next_daemon(&aegis);
    assert_eq!(aegis.info("box")["state"], "paused");
    goes_on("paused");
    aegis.instance("hibernate", "box");
    next_daemon(&aegis);
    assert_eq!(aegis.info("box")["state"], "hibernated");
    goes_on("hibernated");
    // Nobody was there to note it: the machine went to sleep and the daemon died in between.
    aegis.instance("pause", "box");
    aegis.instance("hibernate", "box");
    aegis.kill_daemon();
    aegis.aegis(["up"]).expect_ok();
    goes_on("paused and hibernated");
}

#[test]
fn killed_while_it_is_hibernating() {
    let (aegis, mut last) = counting();
    for round in 0..3 {
        let hibernate = aegis.spawn(["instance", "hibernate", "box"]);
        if round > 0 {
            wait_for("the hibernation to begin", || {
                let begun = aegis.memory_dir("box").join("state").exists();
                (begun || aegis.info("box")["state"] == "hibernated").then_some(())
            });
        }
        next_daemon(&aegis);
        wait_output(hibernate);
        // Saved or not: nothing of the memory is lost.
        let now = count(&aegis, "box");
        assert_eq!(now, last.next(), "round {round}");
        assert_consistent(&aegis);
        last = now;
    }
}

#[test]
fn killed_while_it_is_waking() {
    let (aegis, mut last) = counting();
    let port = aegis.port("box", 80);
    for round in 0..3 {
        aegis.instance("hibernate", "box");
        let client = thread::spawn(move || net::ask(port, "?\n"));
        match round {
            0 => {}
            1 => wait_for("the worker", || {
                aegis.processes().iter().any(|p| p.program == "aegis-vmm-worker").then_some(())
            }),
            _ => wait_for("the VMM", || {
                aegis.processes().iter().any(|p| p.program.starts_with("qemu")).then_some(())
            }),
        }
        next_daemon(&aegis);
        let answered = client.join().unwrap().is_ok_and(|answer| !answer.is_empty());
        let now = count(&aegis, "box");
        assert_consistent(&aegis);
        assert_eq!(now.pid, last.pid, "round {round}");
        // A client whose connection was cut may have been counted.
        let asked = now.count - last.count;
        assert!(asked == 2 || asked == 1 && !answered, "round {round}: {last:?} {now:?}");
        last = now;
    }
}
