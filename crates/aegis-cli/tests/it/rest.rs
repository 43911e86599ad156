//! Ports, waits, leases, templates and numbers.

use insta::assert_snapshot;
use serde_json::Value;

use crate::fake::{Fake, Reply, info, ok};

#[test]
fn ports_are_exposed_and_unexposed() {
    let reply = r#"{"guest_port":80,"public_port":40000,"protocol":"tcp","url":"http://127.0.0.1:40000"}"#;
    let fake = Fake::start()
        .on("POST /v1/instances/web/expose", ok(reply))
        .on("DELETE /v1/instances/web/expose/80", ok(r#"{"status":"ok"}"#));
    assert_eq!(
        fake.aegis(&["instance", "expose", "web", "80/tcp"]),
        "exit: 0\n--- stdout\nExposed: tcp://127.0.0.1:40000 → vm:80\n"
    );
    let request = r#"POST /v1/instances/web/expose {"port":80,"protocol":"tcp"}"#;
    assert_eq!(fake.requests(), [request]);
    assert_eq!(
        fake.aegis(&["instance", "unexpose", "web", "80"]),
        "exit: 0\n--- stdout\nUnexposed port 80 on web\n"
    );
    let busy = r#"{"error":"cannot expose port 80 of instance `web`","code":"port_taken",
        "cause":"port 8080 is in use by another program","hint":"choose another port"}"#;
    let fake = Fake::start().on("POST /v1/instances/web/expose", Reply::Json(409, busy.to_owned()));
    assert_snapshot!(fake.aegis(&["instance", "expose", "web", "8080:80"]), @r"
    exit: 1
    --- stderr
    error: cannot expose port 80 of instance `web`
      cause: port 8080 is in use by another program
      hint: choose another port
    ");
}

#[test]
fn a_wait_ends_with_what_was_waited_for_or_124() {
    let late =
        r#"{"error":"instance `web` did not become hibernated within 1 s: it is paused","code":"timeout"}"#;
    let fake = Fake::start()
        .on("GET /v1/instances/web/wait", ok(r#"{"status":"running"}"#))
        .on("GET /v1/instances/web/wait", ok(r#"{"status":"running"}"#))
        .on("GET /v1/instances/web/wait", Reply::Json(504, late.to_owned()));
    let wait = ["instance", "wait", "web", "--for"];
    let text = fake.aegis(&[&wait[..], &["running"]].concat());
    assert_eq!(text, "exit: 0\n--- stdout\nInstance web is running\n");
    let text = fake.aegis(&[&wait[..], &["port", "--port", "80", "--timeout", "1m"]].concat());
    assert_eq!(text, "exit: 0\n--- stdout\nInstance web listens on port 80\n");
    assert_snapshot!(fake.aegis(&[&wait[..], &["hibernated", "--timeout", "1s"]].concat()), @r"
    exit: 124
    --- stderr
    error: instance `web` did not become hibernated within 1 s: it is paused
    ");
    let path = "GET /v1/instances/web/wait?for=";
    let queries = ["running", "port&port=80&timeout_ms=60000", "hibernated&timeout_ms=1000"];
    assert_eq!(fake.requests(), queries.map(|query| format!("{path}{query}")));
}

#[test]
fn a_lease_is_taken_and_given_up() {
    let fake = Fake::start()
        .on("POST /v1/instances/web/keepalive", ok(r#"{"status":"held"}"#))
        .on("DELETE /v1/instances/web/keepalive", ok(r#"{"status":"released"}"#));
    let text = fake.aegis(&["instance", "keepalive", "web", "--ttl", "90s", "--reason", "job"]);
    assert_eq!(text, "exit: 0\n--- stdout\nInstance web is kept awake for 1m30s\n");
    let text = fake.aegis(&["instance", "keepalive", "web", "--release"]);
    assert_eq!(text, "exit: 0\n--- stdout\nInstance web is no longer kept awake\n");
    let taken = r#"POST /v1/instances/web/keepalive {"ttl_ms":90000,"reason":"job"}"#;
    assert_eq!(fake.requests(), [taken, "DELETE /v1/instances/web/keepalive"]);
}

#[test]
fn templates_are_a_table_and_their_problems_warnings() {
    let templates = r#"[{"key":"0123456789abcdef","image":"base","memory_mb":512,"disk_mb":10240,"vcpus":1,"size_bytes":52428800,
        "created_at":"2026-01-01T00:00:00Z","last_used_at":"2026-01-02T00:00:00Z","state":"ready","loaded":true},
        {"key":"fedcba9876543210","image":"tools:1","memory_mb":256,"vcpus":2,"size_bytes":0,
        "created_at":"2026-01-01T00:00:00Z","state":"failed","problem":"the guest did not answer"}]"#;
    let fake = Fake::start().on("GET /v1/templates", ok(templates));
    assert_snapshot!(fake.aegis(&["template", "list"]), @r"
    exit: 0
    --- stdout
    KEY           IMAGE    MEMORY   CPUS  DISK    SIZE      STATE          CREATED               LAST USED
    0123456789ab  base     512 MiB  1     10 GiB  50.0 MiB  ready, loaded  2026-01-01T00:00:00Z  2026-01-02T00:00:00Z
    fedcba987654  tools:1  256 MiB  2     -       0 B       failed         2026-01-01T00:00:00Z  -
    --- stderr
    warning: template fedcba987654: the guest did not answer
    ");
    let json: Value = serde_json::from_slice(&fake.output(&["template", "list", "--json"]).stdout).unwrap();
    assert_eq!(json[1]["state"], "failed");
    let fake = Fake::start().on("GET /v1/templates", ok("[]"));
    assert_eq!(fake.aegis(&["template", "list"]), "exit: 0\n--- stdout\nNo templates\n");
}

#[test]
fn templates_are_built_and_pruned() {
    let template = |more: &str| {
        let start = r#"{"key":"0123456789abcdef","image":"tools:1","memory_mb":256,"vcpus":2,"size_bytes":1024,
            "created_at":"2026-01-01T00:00:00Z","#;
        ok(&format!("{start}{more}}}"))
    };
    let fake = Fake::start()
        .on("POST /v1/templates", template(r#""state":"ready""#))
        .on("POST /v1/templates", template(r#""state":"failed","problem":"no kernel""#))
        .on("POST /v1/templates/prune", ok(r#"{"pruned":3,"freed_bytes":1048576}"#));
    let build = ["template", "build", "--image", "tools:1", "--memory", "256", "--cpus", "2"];
    let text = fake.aegis(&build);
    let expected = "Template ready: 0123456789ab (tools:1, 256 MiB, 2 CPU(s), 1.0 KiB)\n";
    assert_eq!(text, format!("exit: 0\n--- stdout\n{expected}"));
    assert_snapshot!(fake.aegis(&build), @r"
    exit: 125
    --- stderr
    error: cannot build a template (tools:1, 256 MiB, 2 CPU(s))
      cause: no kernel
      hint: instances boot instead; `aegis doctor` checks what VMs need
    ");
    let text = fake.aegis(&["template", "prune", "--older-than", "14d"]);
    assert_eq!(text, "exit: 0\n--- stdout\nPruned 3 template(s), 1.0 MiB are free again\n");
    fake.aegis(&["template", "prune"]);
    let built = r#"POST /v1/templates {"image_ref":"tools:1","memory_mb":256,"vcpus":2}"#;
    let pruned = [r#"POST /v1/templates/prune {"max_age":"14d"}"#, "POST /v1/templates/prune {}"];
    assert_eq!(fake.requests(), [built, built, pruned[0], pruned[1]]);
}

#[test]
fn stats_are_a_table_or_the_details_of_one() {
    let stats = r#"{"ram_budget_mb":4096,"ram_used_mb":512,"instances":[
        {"id":"inst-1","handle":"web","state":"running","wakes":7,"starts":{"cold":1,"template":0,"restore":7},
         "last_start":{"kind":"restore","total_ms":81,"vmm_ms":40,"load_ms":30,"guest_ms":11},"cpu_ms":1500,
         "rss_bytes":52428800,"disk_bytes":1048576,"memory_image_bytes":0,"active_connections":2,"active_execs":1},
        {"id":"inst-22","state":"hibernated","wakes":0,"starts":{"cold":0,"template":0,"restore":0},"cpu_ms":0,
         "rss_bytes":0,"disk_bytes":1024,"memory_image_bytes":2048,"active_connections":0,"active_execs":0}]}"#;
    let fake =
        Fake::start().on("GET /v1/stats", ok(stats)).on("GET /v1/instances/web", ok(&info("running", "")));
    assert_snapshot!(fake.aegis(&["stats"]), @r"
    exit: 0
    --- stdout
    ID       HANDLE  STATE       STARTS  WAKES  LAST START     CPU    RSS       DISK     IMAGE    CONNS  EXECS
    inst-1   web     running     8       7      restore 81 ms  1.5 s  50.0 MiB  1.0 MiB  0 B      2      1
    inst-22  -       hibernated  0       0      -              0.0 s  0 B       1.0 KiB  2.0 KiB  0      0
    Memory: 512 of 4096 MiB given to VMs
    ");
    assert_snapshot!(fake.aegis(&["stats", "web"]), @r"
    exit: 0
    --- stdout
    Handle:       web
    ID:           inst-1
    State:        running
    Starts:       1 cold, 0 template, 7 restore
    Wakes:        7
    Last Start:   restore, 81 ms (VMM 40 ms, load 30 ms, guest 11 ms)
    CPU:          1.5 s
    RSS:          50.0 MiB
    Disk:         1.0 MiB
    Memory Image: 0 B
    Connections:  2
    Execs:        1
    ");
    let json: Value = serde_json::from_slice(&fake.output(&["stats", "--json"]).stdout).unwrap();
    assert_eq!(json["instances"][1]["memory_image_bytes"], 2048);
    let json: Value = serde_json::from_slice(&fake.output(&["stats", "web", "--json"]).stdout).unwrap();
    assert_eq!(json["last_start"]["load_ms"], 30);
}
