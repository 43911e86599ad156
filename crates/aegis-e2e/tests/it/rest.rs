//! When instances rest by themselves, and what keeps them awake.

use std::collections::BTreeMap;
use std::fs;

use aegis_e2e::{Aegis, Process, net, wait_for, wait_output};
use serde_json::Value;

use crate::guest::{COUNTER, Count, SERVERS, count};

/// How often an instance arrived in this state, as the daemon says.
fn arrivals(aegis: &Aegis, name: &str, state: &str) -> usize {
    let log = fs::read_to_string(aegis.home().join("data/aegisd.log")).unwrap();
    let (name, state) = (format!("name=\"{name}\""), format!("to={state}"));
    log.lines().filter(|line| line.contains(&name) && line.contains(&state)).count()
}

/// Waits until `clock`, which is started for this, was used and then idle for long enough to be paused.
fn let_time_pass(aegis: &Aegis) {
    aegis.exec_sh("clock", "true").expect_ok();
    aegis.wait_state("clock", "paused");
}

#[test]
fn an_idle_vm_is_paused_and_then_hibernated_and_a_busy_one_is_not() {
    let aegis = Aegis::new();
    // The guest looks at itself every five seconds.
    let burn = ["sh", "-c", "while :; do :; done"];
    aegis.start_with("busy", &["--pause-after", "10s", "--hibernate-after", "1s"], &burn);
    aegis.start_with("heedless", &["--pause-after", "2s", "--idle-policy", "leases-only"], &burn);
    aegis.start_with("idle", &["--pause-after", "2s", "--hibernate-after", "2s"], &["sleep", "100000"]);
    aegis.start_with("clock", &["--pause-after", "15s"], &["sleep", "100000"]);
    let info = aegis.wait_state("idle", "hibernated");
    assert!(info["hibernated_at"].is_string(), "{info}");
    assert_eq!((arrivals(&aegis, "idle", "paused"), arrivals(&aegis, "idle", "hibernated")), (1, 1));
    let_time_pass(&aegis);
    assert_eq!(aegis.info("busy")["state"], "running");
    assert_eq!(arrivals(&aegis, "busy", "paused"), 0);
    assert_eq!(aegis.info("heedless")["state"], "paused", "its own work does not count");
    assert_eq!(arrivals(&aegis, "idle", "running"), 1, "nothing woke it");
}

#[test]
fn uses_keep_an_instance_awake_and_their_end_lets_it_rest() {
    let aegis = Aegis::new();
    aegis.start_with("clock", &["--pause-after", "4s"], &["sleep", "100000"]);
    aegis.start_with("never", &["--never-pause"], &["sleep", "100000"]);
    aegis.start_with("box", &["--pause-after", "1s", "--no-hibernate", "--expose", "80"], SERVERS);
    let stays_awake = |why: &str| {
        let before = arrivals(&aegis, "box", "paused");
        assert_eq!(aegis.info("box")["state"], "running", "{why}");
        let_time_pass(&aegis);
        assert_eq!(aegis.info("box")["state"], "running", "{why}");
        assert_eq!(arrivals(&aegis, "box", "paused"), before, "{why}");
    };

    // A lease.
    let lease = ["instance", "keepalive", "box", "--ttl", "10m", "--reason", "testing"];
    aegis.exec_sh("box", "true").expect_ok();
    aegis.aegis(lease).expect_ok();
    aegis.exec_sh("box", "true").expect_ok();
    let info = aegis.info("box");
    assert_eq!((info["lease_held"].as_bool(), info["lease_reason"].as_str()), (Some(true), Some("testing")));
    stays_awake("a lease");
    aegis.aegis(["instance", "keepalive", "box", "--release"]).expect_ok();
    aegis.wait_state("box", "paused");

    // A connection.
    let stream = net::connect(aegis.port("box", 80)).unwrap();
    aegis.wait_state("box", "running");
    stays_awake("a connection");
    drop(stream);
    aegis.wait_state("box", "paused");

    // An exec that does nothing.
    let exec = aegis.spawn(["exec", "box", "--", "sh", "-c", "echo $$ > /dev/shm/pid; exec sleep 100000"]);
    wait_for("the exec", || (aegis.info("box")["active_execs"] == 1).then_some(()));
    stays_awake("an exec");
    aegis.exec_sh("box", "kill $(cat /dev/shm/pid)").expect_ok();
    wait_output(exec).expect_code(143);
    aegis.wait_state("box", "paused");

    // It has the permission to be paused only, and the other one not even that.
    let_time_pass(&aegis);
    assert_eq!(aegis.info("box")["state"], "paused");
    let refused = aegis.aegis(["instance", "hibernate", "box"]).expect_code(1);
    assert!(refused.err().contains("--no-hibernate"), "{}", refused.err());
    assert_eq!(aegis.info("never")["state"], "running");
    assert_eq!(arrivals(&aegis, "never", "paused"), 0);
}

#[test]
fn a_run_that_somebody_follows_stays_awake() {
    let aegis = Aegis::new();
    aegis.start_with("clock", &["--pause-after", "4s"], &["sleep", "100000"]);
    let args =
        ["run", "--name", "followed", "--pause-after", "1s", "--", "sh", "-c", "echo up; sleep 100000"];
    let run = aegis.spawn(args);
    wait_for("the run", || aegis.aegis(["logs", "followed"]).out().contains("up").then_some(()));
    let_time_pass(&aegis);
    let info = aegis.info("followed");
    assert_eq!((info["state"].as_str(), info["attached"].as_u64()), (Some("running"), Some(1)), "{info}");
    assert_eq!(arrivals(&aegis, "followed", "paused"), 0);
    Process { pid: run.id(), program: "aegis".into() }.signal("INT");
    wait_output(run).expect_code(130);
}

#[test]
fn a_memory_budget_hibernates_the_least_recently_used() {
    let aegis = Aegis::new().with_env("AEGIS_RAM_BUDGET_MB", "1024");
    let names = ["a", "b", "c", "d"];
    let states = || -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        aegis.list().iter().map(|i| (text(&i["handle"]), text(&i["state"]))).collect()
    };
    let live = || states().into_iter().filter(|(_, s)| s == "running").map(|(n, _)| n).collect::<Vec<_>>();
    let mut counts = BTreeMap::new();
    for name in names {
        aegis.start_with(name, &["--memory", "512", "--expose", "80"], COUNTER);
        counts.insert(name, count(&aegis, name));
        assert!(live().len() <= 2, "{:?}", states());
    }
    assert_eq!(live(), ["c", "d"]);
    assert!(aegis.processes().iter().filter(|p| p.program.starts_with("qemu")).count() <= 2);
    // `c` was used after `d`.
    let mut ask = |name: &'static str| {
        let now = count(&aegis, name);
        assert_eq!(now, counts[name].next(), "{name} went on where it was");
        counts.insert(name, now);
    };
    ask("c");
    ask("a");
    assert_eq!(live(), ["a", "c"]);
    ask("b");
    assert_eq!(live(), ["a", "b"]);
    ask("d");
    assert_eq!(live(), ["b", "d"]);
    for (name, Count { count, .. }) in counts {
        assert_eq!(count, 2, "{name}");
    }
    let stats: Value = serde_json::from_slice(&aegis.aegis(["stats", "--json"]).expect_ok().stdout).unwrap();
    assert_eq!((stats["ram_budget_mb"].as_u64(), stats["ram_used_mb"].as_u64()), (Some(1024), Some(1024)));
    // What can never fit says so.
    let refused = aegis.aegis(["run", "--memory", "2048", "--", "true"]).expect_code(125);
    assert!(refused.err().contains("1024 MiB"), "{}", refused.err());
}

#[test]
fn a_restart_policy_starts_it_again_and_gives_up_on_a_crash_loop() {
    let aegis = Aegis::new();
    aegis.aegis(["up"]).expect_ok();
    let once = ["sh", "-c", "test -f /root/again && exec sleep 100000; touch /root/again; exit 1"];
    aegis.launch("once", &["--restart", "on-failure"], &once).expect_ok();
    let info = wait_for("it to be started again", || {
        let info = aegis.info("once");
        (info["state"] == "running" && info["restarts"] == 1).then_some(info)
    });
    assert_eq!(info["restart"], "on-failure", "{info}");
    aegis.launch("done", &["--restart", "on-failure"], &["true"]).expect_ok();
    let info = aegis.wait_state("done", "stopped");
    assert_eq!((info["exit_code"].as_u64(), info["restarts"].as_u64()), (Some(0), None), "{info}");

    aegis.launch("loop", &["--restart", "on-failure"], &["sh", "-c", "echo trying; exit 3"]).expect_ok();
    wait_for("the crash loop to be noticed", || {
        (aegis.info("loop")["crashes"] == 5 && aegis.info("loop")["state"] == "stopped").then_some(())
    });
    let tries = |logs: String| logs.lines().filter(|line| *line == "trying").count();
    assert_eq!(tries(aegis.logs("loop").out()), 5);
    let refused = aegis.aegis(["exec", "loop", "--", "true"]);
    assert_ne!(refused.code, Some(0));
    // An explicit start is always tried.
    aegis.instance("start", "loop");
    wait_for("one more try", || (tries(aegis.logs("loop").out()) > 5).then_some(()));
    aegis.instance("disable", "loop");
}

#[test]
fn the_longest_life_ends_a_running_instance_and_a_hibernated_one() {
    // A life begins with the start, and a copy of a template has most of it before it.
    let aegis = Aegis::new().with_templates();
    aegis.aegis(["up"]).expect_ok();
    aegis.aegis(["template", "build"]).expect_ok();
    aegis.start_with("asleep", &["--max-lifetime", "20s"], &["sleep", "100000"]);
    aegis.instance("hibernate", "asleep");
    assert_eq!(aegis.info("asleep")["state"], "hibernated");
    aegis.launch("awake", &["--max-lifetime", "10s"], &["sleep", "100000"]).expect_ok();
    for name in ["awake", "asleep"] {
        let info = aegis.wait_state(name, "stopped");
        assert_eq!(info["stop_reason"], "lifetime", "{info}");
    }
    wait_for("what was saved to be removed", || (!aegis.memory_dir("asleep").exists()).then_some(()));
    let refused = aegis.aegis(["exec", "asleep", "--", "true"]);
    assert_ne!(refused.code, Some(0), "only an explicit start begins a new life");
    aegis.instance("start", "asleep");
    let info = aegis.wait_state("asleep", "running");
    assert_eq!(info["start_kind"], "cold");
}

#[test]
fn stats_and_metrics_tell_what_instances_cost_and_how_they_started() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    let stats = aegis.stats("box");
    assert!(stats["rss_bytes"].as_u64().unwrap() > 10 << 20, "{stats}");
    assert!(stats["disk_bytes"].as_u64().unwrap() > 0, "{stats}");
    assert_eq!(stats["starts"], serde_json::json!({"cold": 1, "template": 0, "restore": 0}));
    aegis.instance("hibernate", "box");
    let stats = aegis.stats("box");
    assert_eq!((stats["rss_bytes"].as_u64(), stats["cpu_ms"].as_u64()), (Some(0), Some(0)), "{stats}");
    let saved = stats["memory_image_bytes"].as_u64().unwrap();
    assert!(saved > 10 << 20 && saved < 512 << 20, "only what was written is kept: {stats}");
    aegis.exec_sh("box", "true").expect_ok();
    let stats = aegis.stats("box");
    assert_eq!(stats["starts"], serde_json::json!({"cold": 1, "template": 0, "restore": 1}));
    assert_eq!((stats["wakes"].as_u64(), stats["last_start"]["kind"].as_str()), (Some(1), Some("restore")));
    assert!(stats["last_start"]["total_ms"].as_u64().unwrap() > 0, "{stats}");
    let table = aegis.aegis(["stats"]).expect_ok().out();
    assert!(table.contains("box") && table.contains("restore"), "{table}");

    let (status, metrics) = net::get(aegis.home(), "/metrics").unwrap();
    assert_eq!(status, 200);
    let id = stats["id"].as_str().unwrap();
    for line in [
        format!("aegis_instance_starts_total{{id=\"{id}\",name=\"box\",kind=\"restore\"}} 1"),
        format!("aegis_instance_state{{id=\"{id}\",name=\"box\",state=\"running\"}} 1"),
        format!("aegis_instance_wakes_total{{id=\"{id}\",name=\"box\"}} 1"),
        format!("aegis_memory_used_bytes {}", 512 << 20),
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }
}
