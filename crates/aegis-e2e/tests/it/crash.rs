//! Killing what must not take anything with it.

use aegis_e2e::{Aegis, finish, wait_for};

#[test]
fn a_killed_daemon_leaves_the_vm_and_the_next_one_adopts_it() {
    let aegis = Aegis::new();
    aegis.start("box", &["sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done"]);
    let qemu = aegis.process("qemu-system-x86_64").pid;
    aegis.exec_sh("box", "echo $$ > /tmp/marker").expect_ok();
    aegis.process("aegisd").kill();
    wait_for("the daemon to die", || aegis.processes().iter().all(|p| p.program != "aegisd").then_some(()));
    assert_eq!(aegis.process("qemu-system-x86_64").pid, qemu, "the VM survives");
    aegis.aegis(["up"]).expect_ok();
    aegis.wait_state("box", "running");
    assert_eq!(aegis.process("qemu-system-x86_64").pid, qemu, "adopted, not booted again");
    aegis.exec_sh("box", "test -f /tmp/marker").expect_ok();
    // The log has every line once, those of the time without a daemon included.
    let seen = |text: String| {
        text.lines().filter_map(|l| l.strip_prefix("line ")?.parse::<u64>().ok()).collect::<Vec<_>>()
    };
    let now = seen(aegis.aegis(["logs", "box"]).expect_ok().out()).len() as u64;
    let lines = wait_for("new lines", || {
        let lines = seen(aegis.aegis(["logs", "box"]).expect_ok().out());
        (lines.len() as u64 > now + 5).then_some(lines)
    });
    assert_eq!(lines, (1..=lines.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_command_that_ends_without_a_daemon_is_not_forgotten() {
    let aegis = Aegis::new();
    aegis.start("box", &["sh", "-c", "while ! test -f /tmp/go; do sleep 0.1; done; echo the end; exit 9"]);
    // Ends while nobody is there: the trigger is already on its way when the daemon dies.
    aegis.exec_sh("box", "(sleep 3; touch /tmp/go) > /dev/null 2>&1 &").expect_ok();
    aegis.process("aegisd").kill();
    std::thread::sleep(std::time::Duration::from_secs(6));
    aegis.aegis(["up"]).expect_ok();
    let info = aegis.wait_state("box", "stopped");
    assert_eq!(
        (info["stop_reason"].as_str(), info["exit_code"].as_u64()),
        (Some("exited"), Some(9)),
        "{info}"
    );
    assert!(aegis.aegis(["logs", "box"]).expect_ok().out().contains("the end\n"));
}

#[test]
fn a_killed_vmm_stops_the_instance_with_a_reason() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    aegis.process("qemu-system-x86_64").kill();
    let info = aegis.wait_state("box", "stopped");
    assert_eq!(info["stop_reason"], "vmm_died");
    assert!(info["last_error"].is_string(), "{info}");
    wait_for("the worker to end", || (aegis.processes().len() == 1).then_some(()));
    // And it can be started again.
    aegis.exec_sh("box", "true").expect_ok();
}

#[test]
fn a_killed_worker_takes_its_vmm_along_and_stops_the_instance() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    aegis.process("aegis-vmm-worker").kill();
    let info = aegis.wait_state("box", "stopped");
    assert_eq!(info["stop_reason"], "vmm_died");
    wait_for("the VMM to end", || (aegis.processes().len() == 1).then_some(()));
    aegis.exec_sh("box", "true").expect_ok();
}

#[test]
fn a_worker_killed_while_no_daemon_runs_is_noticed_by_the_next() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    aegis.process("aegisd").kill();
    aegis.process("aegis-vmm-worker").kill();
    aegis.aegis(["up"]).expect_ok();
    let info = aegis.wait_state("box", "stopped");
    assert_eq!(info["enabled"], true);
    wait_for("the VMM to end", || (aegis.processes().len() == 1).then_some(()));
    aegis.exec_sh("box", "true").expect_ok();
}

#[test]
fn a_second_daemon_on_the_same_home_is_refused() {
    let aegis = Aegis::new();
    aegis.aegis(["up"]).expect_ok();
    let pid = aegis.daemon_pid();
    let second = finish(aegis.command("aegisd", [] as [&str; 0]));
    assert_eq!(second.code, Some(1));
    assert!(second.err().contains(aegis.home().to_str().unwrap()), "{}", second.err());
    assert_eq!(aegis.daemon_pid(), pid);
    aegis.aegis(["status"]).expect_ok();
    assert!(aegis.aegis(["up"]).expect_ok().out().contains("already running"));
}

#[test]
fn a_guest_that_powers_off_stops_its_instance() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    // Past the harness, straight to the kernel.
    let _ = aegis.exec_sh("box", "busybox poweroff -f");
    let info = aegis.wait_state("box", "stopped");
    assert_eq!(info["stop_reason"], "guest_shutdown", "{info}");
}
