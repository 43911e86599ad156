//! `aegis image` beyond listing and importing, `aegis registry`, and images of instances.

use std::fs::{self, File};

use insta::assert_snapshot;
use serde_json::Value;

use crate::fake::{Fake, Reply, entry, info, ok, output};

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn summary(name: &str) -> String {
    format!(
        r#"{{"name":"{name}","digest":"sha256:{HEX}","size_bytes":52428800,"created_at":"2026-01-02T03:04:05Z",
        "builtin":false,"manifest":"sha256:{HEX}"}}"#
    )
    .replace('\n', "")
}

fn ready(changed: bool) -> String {
    format!(r#"{{"type":"ready","image":{},"changed":{changed}}}"#, summary("python:3"))
}

#[test]
fn a_pull_is_followed_to_its_end() {
    let downloading = format!(
        r#"{{"type":"downloading","done_bytes":5,"total_bytes":10,"layers":[{{"digest":"sha256:{HEX}","done_bytes":5,"size_bytes":10}}]}}"#
    );
    let events = |last: &str| {
        let building = r#"{"type":"building","done_bytes":1,"total_bytes":10}"#;
        let all = [r#"{"type":"resolving"}"#, &downloading, building, last];
        Reply::Lines(all.map(str::to_owned).into())
    };
    let failed = r#"{"type":"failed","error":{"error":"cannot pull image `python:3`","code":"pull_failed",
        "cause":"no connection","hint":"try again"}}"#
        .replace('\n', "");
    let fake = Fake::start()
        .on("POST /v1/images/pull", events(&ready(true)))
        .on("POST /v1/images/pull", events(&ready(false)))
        .on("POST /v1/images/pull", events(&failed))
        .on("POST /v1/images/pull", Reply::Lines(vec![r#"{"type":"resolving"}"#.to_owned()]))
        .on("POST /v1/images/pull", events(&ready(true)));
    let pull = ["image", "pull", "docker.io/library/python:3"];
    assert_snapshot!(fake.aegis(&pull), @r"
    exit: 0
    --- stdout
    Image pulled: python:3 (50.0 MiB, sha256:0123456789ab)
    ");
    assert_eq!(fake.requests(), [r#"POST /v1/images/pull {"name":"python:3","policy":"always"}"#]);
    assert_snapshot!(fake.aegis(&["image", "pull", "python:3", "--pull", "missing"]), @r"
    exit: 0
    --- stdout
    Image is up to date: python:3 (50.0 MiB, sha256:0123456789ab)
    ");
    assert!(fake.requests()[1].contains(r#""policy":"missing""#));
    assert_snapshot!(fake.aegis(&pull), @r"
    exit: 1
    --- stderr
    error: cannot pull image `python:3`
      cause: no connection
      hint: try again
    ");
    assert_eq!(fake.output(&pull).status.code(), Some(1), "a stream without an end");
    let json = fake.output(&["image", "pull", "python:3", "--json"]);
    let events: Vec<Value> =
        String::from_utf8(json.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["resolving", "downloading", "building", "ready"]);
}

#[test]
fn names_that_no_registry_has_are_refused_here() {
    let fake = Fake::start();
    for name in ["Python", "a b", "https://ghcr.io/a", "a@sha256:1", "-x"] {
        assert_eq!(fake.output(&["image", "pull", "--", name]).status.code(), Some(2), "{name}");
    }
    assert!(fake.requests().is_empty());
}

#[test]
fn images_are_inspected_and_deleted() {
    let image = format!(
        r#"{{"name":"python:3","digest":"sha256:{HEX}","size_bytes":1,"builtin":false,
        "config":{{"env":{{"A":"b"}},"entrypoint":["/init"]}},"used_by":["inst-1"]}}"#
    );
    let in_use = r#"{"error":"cannot delete image `tools`: it is used by web","code":"image_in_use","hint":"`--force`"}"#;
    let deleted = r#"{"name":"python:3","freed_bytes":10}"#;
    let fake = Fake::start()
        .on("GET /v1/images/inspect", ok(&image))
        .on("DELETE /v1/images", ok(deleted))
        .on("DELETE /v1/images", Reply::Json(409, in_use.to_owned()));
    let json: Value = serde_json::from_slice(&fake.output(&["image", "inspect", "python:3"]).stdout).unwrap();
    assert_eq!(
        (&json["config"]["env"]["A"], &json["used_by"][0]),
        (&Value::from("b"), &Value::from("inst-1"))
    );
    assert_snapshot!(fake.aegis(&["image", "delete", "ghcr.io/a/python:3", "tools"]), @r"
    exit: 1
    --- stdout
    Image ghcr.io/a/python:3 deleted
    --- stderr
    error: cannot delete image `tools`: it is used by web
      hint: `--force`
    ");
    fake.aegis(&["image", "delete", "--force", "tools"]);
    let requests = fake.requests();
    assert_eq!(requests[0], "GET /v1/images/inspect?name=python:3");
    assert_eq!(requests[1], "DELETE /v1/images?name=ghcr.io%2Fa%2Fpython:3&force=0");
    assert_eq!(requests[3], "DELETE /v1/images?name=tools&force=1");
}

#[test]
fn an_image_is_inspected_when_no_instance_has_the_name() {
    let missing = r#"{"error":"no instance named `python`","code":"instance_not_found"}"#;
    let image = format!(r#"{{"name":"python","digest":"sha256:{HEX}","size_bytes":1,"builtin":false}}"#);
    let unknown = r#"{"error":"no image named `python`","code":"image_not_found"}"#;
    let fake = Fake::start()
        .on("GET /v1/instances/python", Reply::Json(404, missing.to_owned()))
        .on("GET /v1/instances", ok("[]"))
        .on("GET /v1/images/inspect", ok(&image))
        .on("GET /v1/images/inspect", Reply::Json(404, unknown.to_owned()));
    let json: Value = serde_json::from_slice(&fake.output(&["inspect", "python"]).stdout).unwrap();
    assert_eq!(json["name"], "python");
    assert_snapshot!(fake.aegis(&["inspect", "python"]), @r"
    exit: 1
    --- stderr
    error: no instance named `python`
      hint: `aegis instance list` shows all instances
    ");
}

#[test]
fn what_images_take_up_is_shown_and_what_nobody_needs_is_pruned() {
    let usage = format!(
        r#"{{"images_bytes":62914560,"unnamed_bytes":10485760,"layers_bytes":20971520,"partial_bytes":1024,
        "reclaimable_bytes":2048,"images":[{{"name":"python:3","digest":"sha256:{HEX}","image_bytes":52428800,
        "layers_bytes":20971520,"shared_bytes":0,"unique_bytes":73400320,"used":true}}]}}"#
    );
    let pruned = r#"{"names":["old:1"],"images":2,"freed_bytes":1048576}"#;
    let fake = Fake::start().on("GET /v1/images/df", ok(&usage)).on("POST /v1/images/prune", ok(pruned));
    assert_snapshot!(fake.aegis(&["image", "df"]), @r"
    exit: 0
    --- stdout
    NAME      IMAGE     LAYERS    SHARED  UNIQUE    USED
    python:3  50.0 MiB  20.0 MiB  0 B     70.0 MiB  yes

    Images:      60.0 MiB
    Unnamed:     10.0 MiB
    Layers:      20.0 MiB
    Interrupted: 1.0 KiB
    Reclaimable: 2.0 KiB
    ");
    let json: Value = serde_json::from_slice(&fake.output(&["image", "df", "--json"]).stdout).unwrap();
    assert_eq!(json["images"][0]["used"], true);
    assert_snapshot!(fake.aegis(&["image", "prune", "--all", "--older-than", "14d"]), @r"
    exit: 0
    --- stdout
    Image old:1 deleted
    Pruned 2 image(s), 1.0 MiB are free again
    ");
    fake.aegis(&["image", "prune"]);
    let requests = fake.requests();
    assert_eq!(requests[2], r#"POST /v1/images/prune {"all":true,"older_than":"14d"}"#);
    assert_eq!(requests[3], "POST /v1/images/prune {}");
}

#[test]
fn archives_are_loaded_and_saved() {
    let loaded = format!(
        r#"[{{"name":"a:1","digest":"sha256:{HEX}","size_bytes":1024}},{{"name":"b:1","digest":"sha256:{HEX}","size_bytes":2048}}]"#
    );
    let unknown = r#"{"error":"no image named `c`","code":"image_not_found"}"#;
    let fake = Fake::start()
        .on("POST /v1/images/load", ok(&loaded))
        .on("GET /v1/images/save", ok("an archive"))
        .on("GET /v1/images/save", ok("an archive"))
        .on("GET /v1/images/save", Reply::Json(404, unknown.to_owned()));
    let archive = fake.home().join("a.tar");
    fs::write(&archive, "tar").unwrap();
    let path = archive.to_str().unwrap();
    assert_snapshot!(fake.aegis(&["image", "load", path]), @r"
    exit: 0
    --- stdout
    Image loaded: a:1 (1.0 KiB, sha256:0123456789ab)
    Image loaded: b:1 (2.0 KiB, sha256:0123456789ab)
    ");
    let mut piped = fake.command(&["image", "load", "-", "--name", "c"]);
    piped.stdin(File::open(&archive).unwrap());
    assert!(output(&mut piped).status.success());
    assert_eq!(
        fake.requests(),
        ["POST /v1/images/load 3\r\ntar\r\n0", "POST /v1/images/load?name=c 3\r\ntar\r\n0"]
    );
    let saved = fake.home().join("saved.tar");
    let save = ["image", "save", "a:1", "--output", saved.to_str().unwrap()];
    assert_snapshot!(fake.aegis(&save), @r"
    exit: 0
    --- stdout
    Image saved: a:1 (10 B)
    ");
    assert_eq!(fs::read_to_string(&saved).unwrap(), "an archive");
    assert_eq!(fake.output(&["image", "save", "a:1"]).stdout, b"an archive");
    // What was there stays when there is nothing to put into its place.
    assert_eq!(fake.output(&save).status.code(), Some(1));
    assert_eq!(fs::read_to_string(&saved).unwrap(), "an archive");
    let parts = fs::read_dir(fake.home()).unwrap().flatten();
    assert_eq!(parts.filter(|file| file.path().extension().is_some_and(|e| e == "part")).count(), 0);
}

#[test]
fn a_password_comes_from_a_pipe_and_is_never_shown() {
    let refusal = r#"{"error":"registry `r.example` does not accept the user name and the password","code":"login_failed"}"#;
    let fake = Fake::start()
        .on("POST /v1/registries", ok(r#"{"registry":"r.example","username":"me"}"#))
        .on("POST /v1/registries", Reply::Json(403, refusal.to_owned()))
        .on("DELETE /v1/registries/r.example", ok(r#"{"status":"deleted"}"#))
        .on("GET /v1/registries", ok("[]"))
        .on(
            "GET /v1/registries",
            ok(r#"[{"registry":"r.example","username":"me"},{"registry":"t.example"}]"#),
        );
    let password = fake.home().join("password");
    fs::write(&password, "hunter2\n").unwrap();
    let login = |fake: &Fake| {
        let mut command = fake.command(&["registry", "login", "r.example", "-u", "me", "--password-stdin"]);
        command.stdin(File::open(&password).unwrap());
        fake.render(&output(&mut command))
    };
    assert_eq!(login(&fake), "exit: 0\n--- stdout\nLogged in to r.example as me\n");
    let sent = r#"POST /v1/registries {"registry":"r.example","username":"me","password":"hunter2"}"#;
    assert_eq!(fake.requests(), [sent]);
    assert_snapshot!(login(&fake), @r"
    exit: 1
    --- stderr
    error: registry `r.example` does not accept the user name and the password
    ");
    assert_snapshot!(fake.aegis(&["registry", "login", "r.example", "--password-stdin"]), @r"
    exit: 2
    --- stderr
    error: a user name is needed: `--username USER`
    ");
    assert_snapshot!(fake.aegis(&["registry", "login", "r.example", "-u", "me"]), @r"
    exit: 2
    --- stderr
    error: there is no terminal to ask for the password
      hint: send it through a pipe with `--password-stdin`
    ");
    assert_eq!(
        fake.aegis(&["registry", "logout", "r.example"]),
        "exit: 0\n--- stdout\nLogged out of r.example\n"
    );
    assert_eq!(fake.aegis(&["registry", "list"]), "exit: 0\n--- stdout\nLogged in to no registry\n");
    assert_snapshot!(fake.aegis(&["registry", "list"]), @r"
    exit: 0
    --- stdout
    REGISTRY   USER
    r.example  me
    t.example  -
    ");
}

#[test]
fn a_run_shows_how_its_image_comes() {
    let created = r#"{"id":"inst-1","state":"starting","command":[],"image_ref":"python:3"}"#;
    let log = [
        entry("system", "stderr", "image resolving: python:3"),
        entry("system", "stderr", "image downloading: python:3 (1.0 MiB of 2.0 MiB)"),
        entry("system", "stderr", "image ready: python:3"),
        entry("system", "stdout", "process exited (code=127)"),
    ];
    let fake = Fake::start()
        .on("POST /v1/instances", Reply::Json(201, created.to_owned()))
        .on("GET /v1/instances/inst-1/logs", Reply::LinesUntilDeleted(log.into()))
        .on("GET /v1/instances/inst-1", ok(&info("stopped", r#","exit_code":127"#)))
        .on("DELETE /v1/instances/inst-1", ok(r#"{"status":"deleted"}"#));
    // The code is that of the command: news of a download are no reason why it could not be started.
    assert_snapshot!(fake.aegis(&["run", "--image", "python:3", "--pull", "always"]), @r"
    exit: 127
    --- stderr
    [system] image resolving: python:3
    [system] image downloading: python:3 (1.0 MiB of 2.0 MiB)
    [system] image ready: python:3
    ");
    let request = r#"POST /v1/instances {"image_ref":"python:3","pull":"always","ephemeral":true}"#;
    assert!(fake.requests().contains(&request.to_owned()), "{:?}", fake.requests());
}

#[test]
fn an_instance_without_a_command_runs_what_its_image_says() {
    let created = r#"{"id":"inst-1","state":"starting","command":[],"image_ref":"python:3","handle":"web"}"#;
    let fake = Fake::start().on("POST /v1/instances", Reply::Json(201, created.to_owned()));
    let start = ["instance", "start", "--name", "web", "--image", "python:3", "--oci-defaults"];
    assert_eq!(fake.aegis(&start), "exit: 0\n--- stdout\nInstance started: inst-1\nHandle: web\n");
    let request = r#"POST /v1/instances {"handle":"web","image_ref":"python:3","oci_defaults":true}"#;
    assert_eq!(fake.requests(), [request]);
    for args in [
        &["run"][..],
        &["run", "--pull", "often", "--", "x"],
        &["instance", "start", "web", "--oci-defaults"],
        &["instance", "start", "web", "--pull", "always"],
        &["instance", "start", "--pull", "always"],
    ] {
        assert_eq!(fake.output(args).status.code(), Some(2), "{args:?}");
    }
}
