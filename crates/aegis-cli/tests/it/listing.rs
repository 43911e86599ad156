//! Lists, details and logs.

use insta::assert_snapshot;
use serde_json::Value;

use crate::fake::{Fake, Reply, entry, info, ok, output, script, status};

const INSTANCES: &str = r#"[
    {"id":"inst-1","handle":"a-long-name-of-an-instance","state":"running","enabled":true,"command":["x"],
     "image_ref":"base","created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"},
    {"id":"inst-22","state":"stopped","enabled":false,"command":["x"],"image_ref":"base",
     "created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z",
     "stopped_at":"2026-01-02T03:04:05.678Z"}]"#;

#[test]
fn instances_are_a_table() {
    let fake = Fake::start().on("GET /v1/instances", ok(INSTANCES));
    assert_snapshot!(fake.aegis(&["instance", "list"]), @r"
    exit: 0
    --- stdout
    ID       HANDLE                      STATUS    STATE    STOPPED AT
    inst-1   a-long-name-of-an-instance  enabled   running  -
    inst-22  -                           disabled  stopped  2026-01-02T03:04:06Z
    ");
    assert_snapshot!(fake.aegis(&["instance", "list", "--disabled"]), @r"
    exit: 0
    --- stdout
    ID       HANDLE  STATUS    STATE    STOPPED AT
    inst-22  -       disabled  stopped  2026-01-02T03:04:06Z
    ");
    for state in ["paused", "hibernated", "running"] {
        fake.aegis(&["instance", "list", &format!("--{state}")]);
        assert_eq!(*fake.requests().last().unwrap(), format!("GET /v1/instances?state={state}"));
    }
    let json: Value = serde_json::from_slice(&fake.output(&["instance", "list", "--json"]).stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
}

#[test]
fn no_instances_are_said_in_words() {
    let fake = Fake::start().on("GET /v1/instances", ok("[]"));
    assert_eq!(fake.aegis(&["instance", "list"]), "exit: 0\n--- stdout\nNo instances\n");
    assert_eq!(fake.aegis(&["instance", "list", "--json"]), "exit: 0\n--- stdout\n[]\n");
}

#[test]
fn info_shows_what_is_known() {
    let more = r#","handle":"web","env_keys":["A","B"],"workdir":"/srv","user":"nobody","tty":true,"stdin":true,"stop_reason":"exited","exit_code":3,
        "stopped_at":"2026-01-02T03:04:05.678Z","last_error":"it was bad""#;
    let fake = Fake::start().on("GET /v1/instances/web", ok(&info("stopped", more)));
    assert_snapshot!(fake.aegis(&["instance", "info", "web"]), @r"
    exit: 0
    --- stdout
    Handle:      web
    ID:          inst-1
    State:       stopped
    Enabled:     true
    Image:       base
    Command:     x
    User:        nobody
    Working Dir: /srv
    Attach:      input, terminal
    Environment: A B
    Memory:      512 MiB
    Disk:        10 GiB
    CPUs:        1
    Network:     public
    Connections: 0
    Execs:       0
    Wakes:       0
    Created:     2026-01-01T00:00:00Z
    Updated:     2026-01-01T00:00:00Z
    Stopped At:  2026-01-02T03:04:06Z
    Stop Reason: exited
    Exit Code:   3
    Last Error:  it was bad
    ");
    let json: Value =
        serde_json::from_slice(&fake.output(&["instance", "info", "web", "--json"]).stdout).unwrap();
    assert_eq!(json["exit_code"], 3);
}

#[test]
fn info_shows_ports_rest_and_starts() {
    let more = r#","handle":"web","endpoints":[{"guest_port":80,"public_port":8080,"protocol":"http"},
        {"guest_port":22,"public_port":40000,"protocol":"tcp","problem":"port 40000 is in use"}],
        "expose_ports":[80,22],"active_connections":2,"attached":1,"pause_after_ms":60000,"hibernate_after_ms":90000,
        "idle_policy":"leases_only","max_lifetime_ms":86400000,"restart":"on-failure","ephemeral":true,
        "lease_held":true,"lease_reason":"nightly job","lease_expires_at":"2026-01-01T01:00:00Z",
        "start_kind":"restore","start_ms":81,"boot_ms":81,"wakes":7,"restarts":2,"crashes":1,
        "hibernated_at":"2026-01-02T03:04:05Z""#;
    let fake = Fake::start().on("GET /v1/instances/web", ok(&info("running", more)));
    assert_snapshot!(fake.aegis(&["instance", "info", "web"]), @r"
    exit: 0
    --- stdout
    Handle:        web
    ID:            inst-1
    State:         running
    Enabled:       true
    Image:         base
    Command:       x
    Memory:        512 MiB
    Disk:          10 GiB
    CPUs:          1
    Network:       public
    Endpoints:
      http://127.0.0.1:8080 → vm:80
      tcp://127.0.0.1:40000 → vm:22 (port 40000 is in use)
    Connections:   2
    Execs:         0
    Attached:      1
    Idleness:      paused after 1m, hibernated after 1m30s more (policy leases_only)
    Lease:         held until 2026-01-01T01:00:00Z (nightly job)
    Max Lifetime:  1d
    Restart:       on-failure
    Ephemeral:     true
    Start:         restore, 81 ms
    Wakes:         7
    Restarts:      2
    Crashes:       1
    Created:       2026-01-01T00:00:00Z
    Updated:       2026-01-01T00:00:00Z
    Hibernated At: 2026-01-02T03:04:05Z
    ");
    let json: Value =
        serde_json::from_slice(&fake.output(&["instance", "info", "web", "--json"]).stdout).unwrap();
    assert_eq!((&json["endpoints"][0]["public_port"], &json["wakes"]), (&8080.into(), &7.into()));
    let fake = Fake::start()
        .on("GET /v1/instances/web", ok(&info("running", r#","never_pause":true,"no_hibernate":true"#)));
    let text = fake.aegis(&["instance", "info", "web"]);
    assert!(text.contains("Idleness:    never paused, never hibernated (policy default)\n"), "{text}");
}

#[test]
fn hibernated_instances_are_among_the_stopped_ones() {
    let instances = INSTANCES.replace(r#""state":"running""#, r#""state":"hibernated""#);
    let paused = r#"{"id":"inst-3","state":"paused","enabled":true,"command":["x"],"image_ref":"base",
        "created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}"#;
    let fake = Fake::start().on("GET /v1/instances", ok(&instances.replace("}]", &format!("}},{paused}]"))));
    assert_snapshot!(fake.aegis(&["instance", "list", "--stopped"]), @r"
    exit: 0
    --- stdout
    ID       HANDLE                      STATUS    STATE       STOPPED AT
    inst-1   a-long-name-of-an-instance  enabled   hibernated  -
    inst-22  -                           disabled  stopped     2026-01-02T03:04:06Z
    ");
}

#[test]
fn actions_say_what_they_did() {
    let reply = ok(r#"{"status":"x"}"#);
    let actions = ["stop", "restart", "disable", "pause", "resume", "hibernate"];
    let fake = actions.into_iter().fold(Fake::start(), |fake, action| {
        fake.on(&format!("POST /v1/instances/web/{action}"), reply.clone())
    });
    for (action, done) in [
        ("stop", "stopped"),
        ("restart", "restarting"),
        ("disable", "disabled"),
        ("pause", "paused"),
        ("resume", "resumed"),
        ("hibernate", "hibernated"),
    ] {
        let expected = format!("exit: 0\n--- stdout\nInstance web {done}\n");
        assert_eq!(fake.aegis(&["instance", action, "web"]), expected);
    }
}

#[test]
fn every_deletion_is_reported() {
    let gone = ok(r#"{"status":"deleted"}"#);
    let fake = Fake::start()
        .on("DELETE /v1/instances/a", gone.clone())
        .on("DELETE /v1/instances/c", gone)
        .on("GET /v1/instances", ok("[]"));
    assert_snapshot!(fake.aegis(&["instance", "delete", "a", "b", "c"]), @r"
    exit: 1
    --- stdout
    Instance a deleted
    Instance c deleted
    --- stderr
    error: no instance named `b`
      hint: `aegis instance list` shows all instances
    ");
}

#[test]
fn prune_counts() {
    let fake = Fake::start().on("POST /v1/instances/prune", ok(r#"{"pruned":2,"ids":["inst-1","inst-2"]}"#));
    assert_eq!(fake.aegis(&["instance", "prune"]), "exit: 0\n--- stdout\nPruned 2 stopped instance(s)\n");
    fake.aegis(&["instance", "prune", "--stopped-older-than", "1h30m"]);
    let requests = fake.requests();
    assert_eq!(
        requests,
        ["POST /v1/instances/prune?older_than=7d", "POST /v1/instances/prune?older_than=1h30m"]
    );
}

const CREATED: &str = r#"{"id":"inst-1","state":"starting","command":["x"],"handle":"web","image_ref":"base",
    "warnings":["--memory is ignored: the instance has 512 MiB"]}"#;

#[test]
fn start_tells_new_from_old() {
    let fake = Fake::start()
        .on("POST /v1/instances", Reply::Json(201, CREATED.to_owned()))
        .on("POST /v1/instances", Reply::Json(200, CREATED.to_owned()))
        .on("GET /v1/instances/web", ok(&info("stopped", "")));
    let args = ["instance", "start", "--name", "web", "--env", "A=b=c", "--vcpus=2", "--", "sh", "-c", "--x"];
    assert_snapshot!(fake.aegis(&args), @r"
    exit: 0
    --- stdout
    Instance started: inst-1
    Handle: web
    --- stderr
    warning: --memory is ignored: the instance has 512 MiB
    ");
    let created =
        r#"POST /v1/instances {"command":["sh","-c","--x"],"handle":"web","env":{"A":"b=c"},"vcpus":2}"#;
    assert_eq!(fake.requests(), [created]);
    let again = fake.aegis(&["instance", "start", "--name", "web"]);
    assert!(again.contains("Instance restarted: inst-1\nHandle: web\n"), "{again}");
    assert_eq!(fake.requests().last().unwrap(), r#"POST /v1/instances {"handle":"web"}"#);
}

#[test]
fn start_takes_ports_and_policies_and_shows_urls() {
    let created = r#"{"id":"inst-1","state":"starting","command":["x"],"handle":"web","image_ref":"base",
        "endpoints":[{"guest_port":80,"public_port":8080,"protocol":"http"},
            {"guest_port":22,"public_port":40000,"protocol":"tcp"}]}"#;
    let fake = Fake::start().on("POST /v1/instances", Reply::Json(201, created.to_owned()));
    let ports = ["instance", "start", "--name", "web", "--expose", "8080:80", "--expose", "22/tcp"];
    let policies =
        ["--hibernate-after=0s", "--never-pause", "--restart", "always", "--idle-policy", "leases-only"];
    assert_snapshot!(fake.aegis(&[&ports[..], &policies, &["--", "x"]].concat()), @r"
    exit: 0
    --- stdout
    Instance started: inst-1
    Handle: web
    URL:    http://127.0.0.1:8080
    URL:    tcp://127.0.0.1:40000
    ");
    let body = r#"{"command":["x"],"handle":"web","exposes":[{"port":80,"public_port":8080,"protocol":"http"},{"port":22,"protocol":"tcp"}],"hibernate_after_ms":0,"never_pause":true,"restart":"always","idle_policy":"leases_only"}"#;
    assert_eq!(fake.requests(), [format!("POST /v1/instances {body}")]);
}

#[test]
fn ports_that_an_old_daemon_ignores_are_missed() {
    let created = r#"{"id":"inst-1","state":"starting","command":["x"],"image_ref":"base"}"#;
    let fake = Fake::start().on("POST /v1/instances", Reply::Json(201, created.to_owned()));
    assert_snapshot!(fake.aegis(&["instance", "start", "--expose", "80", "--", "x"]), @r"
    exit: 0
    --- stdout
    Instance started: inst-1
    --- stderr
    warning: no port is exposed: aegisd is older than this program; `aegis down`, then `aegis up`, renews it
    ");
}

#[test]
fn doctor_shows_the_router_and_the_budget_of_the_daemon() {
    let router = r#""router":{"problem":"127.0.0.1:8099 is in use"},"ram_budget_mb":4096,"live_vms":1"#;
    let fake = Fake::start_with(&status(4242).replace(r#""live_vms":1"#, router));
    let report: Value = serde_json::from_slice(&fake.output(&["doctor", "--json"]).stdout).unwrap();
    let check = |name: &str| report["checks"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
    assert_eq!(check("RAM budget")["value"], "4096 MiB for all VMs together");
    assert_eq!((&check("Router")["level"], &check("Router")["value"]), (&"warning".into(), &"off".into()));
    assert_eq!(check("Router")["problem"], "127.0.0.1:8099 is in use");
}

#[test]
fn start_of_an_unknown_name_without_command_is_refused() {
    let fake = Fake::start().on("GET /v1/instances", ok(INSTANCES));
    assert_snapshot!(fake.aegis(&["instance", "start", "--name", "web"]), @r"
    exit: 1
    --- stderr
    error: no instance named `web`
      hint: `aegis instance list` shows all instances
    ");
    assert!(!fake.requests().iter().any(|request| request.starts_with("POST")));
}

#[test]
fn start_by_id_starts_what_is_there() {
    let fake = Fake::start()
        .on("GET /v1/instances/inst-1", ok(&info("stopped", "")))
        .on("GET /v1/instances/inst-1", ok(&info("running", "")))
        .on("POST /v1/instances/inst-1/start", ok(r#"{"status":"starting"}"#));
    let start = ["instance", "start", "inst-1"];
    assert_eq!(fake.aegis(&start), "exit: 0\n--- stdout\nInstance restarted: inst-1\n");
    assert_eq!(fake.aegis(&start), "exit: 0\n--- stdout\nInstance already running: inst-1\n");
}

#[test]
fn images_are_a_table() {
    let images = r#"[{"name":"base","digest":"sha256:0123456789abcdef","size_bytes":52428800,"builtin":true},
        {"name":"team/tools:v1","digest":"sha256:fedcba9876543210","size_bytes":1000,
         "created_at":"2026-01-02T03:04:05Z","builtin":false}]"#;
    let fake = Fake::start().on("GET /v1/images", ok(images));
    assert_snapshot!(fake.aegis(&["image", "list"]), @r"
    exit: 0
    --- stdout
    NAME           SIZE      CREATED               DIGEST
    base           50.0 MiB  built in              sha256:0123456789ab
    team/tools:v1  1000 B    2026-01-02T03:04:05Z  sha256:fedcba987654
    ");
    let json: Value = serde_json::from_slice(&fake.output(&["image", "list", "--json"]).stdout).unwrap();
    assert_eq!(json[0]["builtin"], true);
}

#[test]
fn an_import_sends_the_file() {
    let reply = r#"{"name":"tools","digest":"sha256:0123456789abcdef","size_bytes":4096}"#;
    let fake = Fake::start().on("POST /v1/images/import", ok(reply));
    let tar = fake.home().join("t.tar");
    std::fs::write(&tar, "tar").unwrap();
    assert_snapshot!(fake.aegis(&["image", "import", tar.to_str().unwrap(), "--name", "tools"]), @r"
    exit: 0
    --- stdout
    Image imported: tools (4.0 KiB, sha256:0123456789ab)
    ");
    assert_eq!(fake.requests(), ["POST /v1/images/import?name=tools 3\r\ntar\r\n0"]);
    assert_snapshot!(fake.aegis(&["image", "import", "/nonexistent/x.tar", "--name", "tools"]), @r"
    exit: 1
    --- stderr
    error: cannot read /nonexistent/x.tar
      cause: no such file or directory
    ");
    assert_eq!(fake.output(&["image", "import", "/", "--name", "tools"]).status.code(), Some(1));
}

#[test]
fn logs_mark_what_is_not_the_instances_own() {
    let lines = vec![
        entry("system", "stdout", "booted"),
        entry("server", "stdout", "out"),
        entry("exec", "stdout", "from exec"),
        entry("server", "stderr", "err"),
        entry("system", "stderr", "careful"),
    ];
    let fake = Fake::start().on("GET /v1/instances/web/logs", Reply::Lines(lines));
    assert_snapshot!(fake.aegis(&["logs", "web"]), @r"
    exit: 0
    --- stdout
    [system] booted
    out
    [exec] from exec
    --- stderr
    err
    [system] careful
    ");
    fake.aegis(&["logs", "web", "-f", "--tail", "5", "--since", "2026-01-01T00:00:00Z", "--exec-id", "e"]);
    let expected = "GET /v1/instances/web/logs?follow=1&since=2026-01-01T00:00:00Z&tail=5&exec_id=e";
    assert_eq!(fake.requests().last().unwrap(), expected);
}

#[test]
fn a_console_comes_byte_for_byte() {
    let fake = Fake::start().on("GET /v1/instances/web/console", ok("[    0.0] Linux\r\n"));
    assert_eq!(fake.output(&["logs", "web", "--console"]).stdout, b"[    0.0] Linux\r\n");
}

#[test]
fn a_log_that_breaks_off_is_an_error() {
    let fake = Fake::start()
        .on("GET /v1/instances/web/logs", Reply::LinesThenCut(vec![entry("server", "stdout", "out")]));
    let output = fake.output(&["logs", "web", "-f"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(125), &b"out\n"[..]));
}

#[test]
fn status_is_three_lines_or_json() {
    let fake = Fake::start();
    let text = fake.aegis(&["status"]);
    assert_eq!(text, "exit: 0\n--- stdout\naegis [VERSION]\naegisd: running\nbackend: qemu\n");
    let json: Value = serde_json::from_slice(&fake.output(&["status", "--json"]).stdout).unwrap();
    assert_eq!((&json["running"], &json["daemon"]["pid"]), (&Value::Bool(true), &Value::from(4242)));
    let text = Fake::absent().aegis(&["status"]);
    assert_eq!(text, "exit: 0\n--- stdout\naegis [VERSION]\naegisd: not running\n");
}

#[test]
fn status_shows_the_router() {
    let with =
        |router: &str| status(4242).replace(r#""live_vms":1"#, &format!(r#""live_vms":1,"router":{router}"#));
    for (router, expected) in [
        (r#"{"address":"127.0.0.1:8099"}"#, "router: http://127.0.0.1:8099\n"),
        (r#"{"problem":"127.0.0.1:8099 is in use"}"#, "router: off (127.0.0.1:8099 is in use)\n"),
    ] {
        let fake = Fake::start_with(&with(router));
        let text = fake.aegis(&["status"]);
        assert!(text.ends_with(&format!("backend: qemu\n{expected}")), "{text}");
    }
}

#[test]
fn doctor_names_each_problem_and_fails() {
    let fake = Fake::absent();
    std::fs::write(fake.home().join("config.toml"), "default_cpus = 2\n").unwrap();
    let mut command = fake.command(&["doctor", "--json"]);
    let output = output(command.env("AEGIS_KERNEL", "/nonexistent/vmlinux"));
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let check = |name: &str| report["checks"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
    assert_eq!(check("Kernel")["level"], "error");
    let problem = "the kernel `/nonexistent/vmlinux` named by AEGIS_KERNEL is not a file";
    assert_eq!(check("Kernel")["problem"], problem);
    assert!(check("VMM")["hint"].as_str().unwrap().contains("qemu"));
    assert_eq!(check("Daemon")["value"], "not running");
    let cpus = report["settings"].as_array().unwrap().iter().find(|s| s["name"] == "default_cpus").unwrap();
    assert_eq!((&cpus["value"], &cpus["source"]), (&Value::from("2"), &Value::from("config.toml")));
}

#[test]
fn doctor_is_content_with_a_whole_installation() {
    let fake = Fake::start();
    let file = script(fake.home(), "program", "echo 'QEMU emulator version 9'");
    let mut command = fake.command(&["doctor"]);
    for name in ["KERNEL", "INITRAMFS", "BASE_IMAGE", "DISK_TEMPLATE", "QEMU", "WORKER", "DAEMON"] {
        command.env(format!("AEGIS_{name}"), &file);
    }
    let output = output(&mut command);
    let text = fake.render(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("VMM:           [HOME]/program (QEMU emulator version 9, AEGIS_QEMU)"), "{text}");
    // What the daemon says, with or without advice that depends on the machine.
    assert!(text.contains("Accelerator:   tcg") && text.contains("there is no /dev/kvm"), "{text}");
    assert!(text.ends_with("VMs can run.\n"), "{text}");
}
