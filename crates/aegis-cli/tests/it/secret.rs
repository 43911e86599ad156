//! `aegis secret`, and secrets of instances.

use std::fs::{self, File};

use insta::assert_snapshot;

use crate::fake::{Fake, Reply, info, ok, output};

const STORED: &str = r#"{"name":"KEY","created_at":"2026-01-01T00:00:00Z"}"#;

#[test]
fn a_value_comes_from_a_pipe_a_file_or_the_command_line() {
    let fake = Fake::start().on("PUT /v1/secrets/KEY", ok(STORED));
    let path = fake.home().join("value");
    fs::write(&path, "from \"here\"\n").unwrap();
    for args in [&["secret", "set", "KEY", "-"][..], &["secret", "set", "KEY"]] {
        let mut command = fake.command(args);
        command.stdin(File::open(&path).unwrap());
        assert_eq!(fake.render(&output(&mut command)), "exit: 0\n--- stdout\nSecret KEY set\n");
        let request = r#"PUT /v1/secrets/KEY {"value":"from \"here\""}"#;
        assert_eq!(fake.requests().last().unwrap(), request, "without its last newline");
    }
    fake.aegis(&["secret", "set", "KEY", "--file", path.to_str().unwrap()]);
    assert_eq!(fake.requests().last().unwrap(), r#"PUT /v1/secrets/KEY {"value":"from \"here\"\n"}"#);
    fs::write(&path, b"\xff").unwrap();
    fake.aegis(&["secret", "set", "KEY", "--file", path.to_str().unwrap()]);
    assert_eq!(fake.requests().last().unwrap(), r#"PUT /v1/secrets/KEY {"value":{"base64":"/w=="}}"#);
    assert_snapshot!(fake.aegis(&["secret", "set", "KEY", "value"]), @r"
    exit: 0
    --- stdout
    Secret KEY set
    --- stderr
    warning: a value on the command line is in the history of the shell, and others could see it meanwhile
    ");
    assert_eq!(fake.requests().last().unwrap(), r#"PUT /v1/secrets/KEY {"value":"value"}"#);
    let count = fake.requests().len();
    assert_snapshot!(fake.aegis(&["secret", "set", "KEY"]), @r"
    exit: 1
    --- stderr
    error: the value of secret `KEY` is empty
    ");
    assert_snapshot!(fake.aegis(&["secret", "set", "no name", "x"]), @r"
    exit: 2
    --- stderr
    error: invalid value 'no name' for '<KEY>': invalid secret name `no name`: use at most 128 letters, digits, `_`, `.` and `-`, and begin with a letter or `_`

    For more information, try '--help'.
    ");
    assert_eq!(fake.requests().len(), count);
}

#[test]
fn names_are_listed_and_a_value_is_shown_only_when_it_is_revealed() {
    let fake = Fake::start()
        .on("GET /v1/secrets", ok("[]"))
        .on("GET /v1/secrets", ok(&format!("[{STORED}]")))
        .on("POST /v1/secrets/KEY/reveal", ok(r#"{"name":"KEY","value":"v"}"#));
    assert_eq!(fake.aegis(&["secret", "list"]), "exit: 0\n--- stdout\nNo secrets\n");
    assert_eq!(fake.aegis(&["secret", "list"]), "exit: 0\n--- stdout\nSecrets:\n  KEY\n");
    assert!(fake.aegis(&["secret", "get", "KEY"]).starts_with("exit: 2\n"));
    assert_eq!(fake.aegis(&["secret", "get", "KEY", "--reveal"]), "exit: 0\n--- stdout\nv");
}

#[test]
fn secrets_are_deleted_and_the_key_is_changed() {
    let missing =
        r#"{"error":"no secret named `B`","code":"secret_not_found","hint":"`aegis secret list` shows all"}"#;
    let fake = Fake::start()
        .on("DELETE /v1/secrets/A", ok(r#"{"status":"deleted"}"#))
        .on("DELETE /v1/secrets/B", Reply::Json(404, missing.to_owned()))
        .on("POST /v1/secrets/rotate-key", ok(r#"{"secrets":3}"#));
    assert_snapshot!(fake.aegis(&["secret", "delete", "B", "A"]), @r"
    exit: 1
    --- stdout
    Secret A deleted
    --- stderr
    error: no secret named `B`
      hint: `aegis secret list` shows all
    ");
    let rotated = "exit: 0\n--- stdout\nMaster key changed; 3 secret(s) encrypted anew\n";
    assert_eq!(fake.aegis(&["secret", "rotate-key"]), rotated);
}

#[test]
fn the_audit_log_is_a_table() {
    let audit = r#"[{"ts":"2026-01-01T00:00:00Z","event":"set","secrets":["KEY"]},
        {"ts":"2026-01-01T00:00:01Z","event":"injected","secrets":["KEY","K=secret.b"],"instance_id":"inst-1",
         "handle":"web","vm_id":"vm-0000000000000001"},
        {"ts":"2026-01-01T00:00:02Z","event":"rotated"}]"#;
    let fake = Fake::start().on("GET /v1/audit", ok(audit));
    assert_snapshot!(fake.aegis(&["secret", "audit"]), @r"
    exit: 0
    --- stdout
    TIME                  EVENT     INSTANCE  SECRETS
    2026-01-01T00:00:00Z  set       -         KEY
    2026-01-01T00:00:01Z  injected  web       KEY K=secret.b
    2026-01-01T00:00:02Z  rotated   -         -
    ");
    assert!(!fake.aegis(&["secret", "audit", "web"]).contains("rotated"));
}

#[test]
fn every_form_of_a_variable_reaches_the_daemon() {
    let created = r#"{"id":"inst-1","state":"starting","command":["x"],"image_ref":"base",
        "warnings":["secret `MAYBE` is not stored: `MAYBE` is not set"]}"#;
    let fake = Fake::start().on("POST /v1/instances", Reply::Json(201, created.to_owned())).on(
        "GET /v1/instances/web",
        ok(&info("running", r#","secret_keys":["A","B=secret.b"],"secret_files":["A:/run/secrets/a"]"#)),
    );
    let args = [
        "instance",
        "start",
        "--secret=A",
        "--env=MAYBE",
        "--env=V=literal",
        "--env=B=secret.b",
        "--env-literal=L=secret.b",
        "--secret-file=A:/run/secrets/a",
        "--",
        "x",
    ];
    assert_snapshot!(fake.aegis(&args), @r"
    exit: 0
    --- stdout
    Instance started: inst-1
    --- stderr
    warning: secret `MAYBE` is not stored: `MAYBE` is not set
    ");
    let request = r#"POST /v1/instances {"command":["x"],"env":{"L":"secret.b","V":"literal"},"secrets":["A","MAYBE?","B=secret.b"],"secret_files":["A:/run/secrets/a"]}"#;
    assert_eq!(fake.requests().last().unwrap(), request);
    let shown = fake.aegis(&["instance", "info", "web"]);
    assert!(shown.contains("Secrets:     A B=secret.b A:/run/secrets/a\n"), "{shown}");
    assert_snapshot!(fake.aegis(&["run", "--secret", "A", "--env", "A=secret.b", "--", "x"]), @r"
    exit: 2
    --- stderr
    error: the options for secrets contradict each other
      cause: `A` would have two secrets
    ");
}

#[test]
fn which_secrets_an_instance_gets_is_replaced_as_a_whole() {
    let fake = Fake::start()
        .on(
            "PUT /v1/instances/web/secrets",
            ok(r#"{"secret_keys":["A","B=secret.C"],"secret_files":["K:/run/secrets/k"],"restart_required":true}"#),
        )
        .on("PUT /v1/instances/web/secrets", ok(r#"{"secret_keys":[]}"#));
    let args = ["secret", "assign", "web", "A", "B=secret.C", "--secret-file", "K:/run/secrets/k"];
    assert_snapshot!(fake.aegis(&args), @r"
    exit: 0
    --- stdout
    Instance web gets A B=secret.C K:/run/secrets/k
    It has what it was started with until its next boot: `aegis instance restart web`
    ");
    let request =
        r#"PUT /v1/instances/web/secrets {"secrets":["A","B=secret.C"],"secret_files":["K:/run/secrets/k"]}"#;
    assert_eq!(fake.requests().last().unwrap(), request);
    let answer = fake.aegis(&["secret", "assign", "web", "--none"]);
    assert_eq!(answer, "exit: 0\n--- stdout\nInstance web gets no secrets\n");
    let request = r#"PUT /v1/instances/web/secrets {"secrets":[],"secret_files":[]}"#;
    assert_eq!(fake.requests().last().unwrap(), request);
    let count = fake.requests().len();
    assert!(fake.aegis(&["secret", "assign", "web"]).starts_with("exit: 2\n"), "it must be said");
    assert!(fake.aegis(&["secret", "assign", "web", "A", "--none"]).starts_with("exit: 2\n"));
    assert_eq!(fake.requests().len(), count);
}
