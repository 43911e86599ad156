//! Instances and their states.

use aegis_e2e::Aegis;

#[test]
fn a_root_file_system_lives_until_delete() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    aegis
        .exec_sh("box", "echo kept > /root/file; rm /etc/debian_version 2>/dev/null; echo x > /tmp/gone")
        .expect_ok();
    aegis.aegis(["instance", "stop", "box"]).expect_ok();
    let info = aegis.info("box");
    assert_eq!((info["state"].as_str(), info["stop_reason"].as_str()), (Some("stopped"), Some("requested")));
    // Exec wakes an instance that was stopped on request.
    assert_eq!(aegis.exec_sh("box", "cat /root/file; ls /tmp").expect_ok().out(), "kept\n");
    aegis.aegis(["instance", "restart", "box"]).expect_ok();
    aegis.wait_state("box", "running");
    assert_eq!(aegis.exec_sh("box", "cat /root/file").expect_ok().out(), "kept\n");
    aegis.aegis(["instance", "delete", "box"]).expect_ok();
    let left = std::fs::read_dir(aegis.home().join("data/instances")).map(|d| d.count()).unwrap_or(0);
    assert_eq!(left, 0, "the disk goes with the instance");
    aegis.aegis(["instance", "info", "box"]).expect_code(1);
}

#[test]
fn pause_halts_the_machine_and_resume_goes_on_with_a_right_clock() {
    let aegis = Aegis::new();
    aegis.start("box", &["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.05; done"]);
    aegis.aegis(["instance", "pause", "box"]).expect_ok();
    assert_eq!(aegis.info("box")["state"], "paused");
    aegis.aegis(["instance", "pause", "box"]).expect_ok();
    aegis.aegis(["instance", "resume", "box"]).expect_ok();
    assert_eq!(aegis.info("box")["state"], "running");
    // Exec wakes a paused instance, and the process inside is the same one.
    aegis.aegis(["instance", "pause", "box"]).expect_ok();
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let output = aegis.exec_sh("box", "cat /tmp/count; date +%s").expect_ok().out();
    let mut lines = output.lines().map(|line| line.parse::<u64>().unwrap());
    assert!(lines.next().unwrap() >= 1);
    assert!(lines.next().unwrap() + 2 >= before, "the clock was set on resume: {output}");
    assert_eq!(aegis.info("box")["state"], "running");
}

#[test]
fn a_command_that_ends_stops_its_instance_and_exec_says_so() {
    let aegis = Aegis::new();
    aegis.aegis(["up"]).expect_ok();
    aegis.aegis(["instance", "start", "--name", "short", "--", "sh", "-c", "echo bye; exit 7"]).expect_ok();
    let info = aegis.wait_state("short", "stopped");
    assert_eq!((info["stop_reason"].as_str(), info["exit_code"].as_u64()), (Some("exited"), Some(7)));
    let log = aegis.aegis(["logs", "short"]).expect_ok();
    assert!(log.out().contains("bye\n") && log.out().contains("process exited (code=7)"), "{}", log.out());
    let refused = aegis.aegis(["exec", "short", "--", "true"]);
    assert_ne!(refused.code, Some(0));
    assert!(refused.err().contains("short"), "{}", refused.err());
    // Starting it again runs the command again.
    aegis.aegis(["instance", "start", "--name", "short"]).expect_ok();
    aegis.wait_state("short", "stopped");
    let pruned = aegis.aegis(["instance", "prune", "--stopped-older-than", "0s"]).expect_ok();
    assert!(pruned.out().contains("Pruned 1"), "{}", pruned.out());
}

#[test]
fn a_disabled_instance_is_not_woken_and_start_enables_it() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    aegis.aegis(["instance", "disable", "box"]).expect_ok();
    let info = aegis.info("box");
    assert_eq!((info["state"].as_str(), info["enabled"].as_bool()), (Some("stopped"), Some(false)));
    assert_ne!(aegis.aegis(["exec", "box", "--", "true"]).code, Some(0));
    aegis.aegis(["instance", "start", "--name", "box"]).expect_ok();
    aegis.wait_state("box", "running");
    aegis.exec_sh("box", "true").expect_ok();
}

#[test]
fn stop_gives_processes_time_to_finish() {
    let aegis = Aegis::new();
    aegis.start(
        "box",
        &[
            "sh",
            "-c",
            "trap 'sleep 0.5; echo finished > /root/done; exit 0' TERM; echo up; while :; do sleep 0.1; done",
        ],
    );
    aegis_e2e::wait_for("the trap to be set", || {
        aegis.aegis(["logs", "box"]).out().contains("up").then_some(())
    });
    aegis.aegis(["instance", "stop", "box"]).expect_ok();
    // The command would overwrite nothing: exec wakes the instance and finds what was synced.
    assert_eq!(aegis.exec_sh("box", "cat /root/done").expect_ok().out(), "finished\n");
}

#[test]
fn down_hibernates_everything_and_up_remembers() {
    let aegis = Aegis::new();
    aegis.start_sleeper("one");
    aegis.start_sleeper("two");
    aegis.exec_sh("one", "echo kept > /dev/shm/memory").expect_ok();
    aegis.down();
    aegis.aegis(["status"]).expect_ok();
    aegis.aegis(["up"]).expect_ok();
    for name in ["one", "two"] {
        let info = aegis.info(name);
        assert_eq!(
            (info["state"].as_str(), info["enabled"].as_bool()),
            (Some("hibernated"), Some(true)),
            "{info}"
        );
    }
    assert_eq!(aegis.exec_sh("one", "cat /dev/shm/memory").expect_ok().out(), "kept\n");
    assert_eq!(aegis.info("two")["state"], "hibernated", "nothing wakes it");
    // Unless they are to be stopped.
    aegis.aegis(["down", "--stop"]).expect_ok();
    aegis.aegis(["up"]).expect_ok();
    let info = aegis.info("one");
    assert_eq!(
        (info["state"].as_str(), info["stop_reason"].as_str()),
        (Some("stopped"), Some("daemon_stopped"))
    );
    assert_eq!(aegis.info("two")["state"], "hibernated", "it has no VM to stop");
    assert_eq!(aegis.exec_sh("one", "ls /dev/shm").expect_ok().out(), "");
}
