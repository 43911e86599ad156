//! Secrets in real VMs, and everywhere else on this machine.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use aegis_e2e::{Aegis, Output, finish, wait_for};

/// Unlike anything else in a home.
const FIRST: &str = "Zx9-first-value-Zx9";
const SECOND: &str = "Zx9-second-value-Zx9";

/// `aegis secret set KEY -` with this on standard input.
fn set(aegis: &Aegis, key: &str, value: &str) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("value"), format!("{value}\n")).unwrap();
    let mut command = aegis.command("aegis", ["secret", "set", key, "-"]);
    command.stdin(File::open(dir.path().join("value")).unwrap());
    assert_eq!(finish(command).expect_ok().out(), format!("Secret {key} set\n"));
}

/// Files of the home with this text, but for the memory of instances: that has what their processes have.
fn files_with(dir: &Path, text: &str) -> String {
    let mut command = Command::new("grep");
    command.args(["-rlF", "--exclude-dir=memory", text]).arg(dir);
    finish(command).out()
}

/// Processes of this machine that show this text to whoever looks.
fn processes_with(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            // Others may have ended, or not be ours to read.
            let shown = fs::read(entry.path().join(file)).unwrap_or_default();
            if shown.windows(text.len()).any(|part| part == text.as_bytes()) {
                found.push(entry.path().join(file).display().to_string());
            }
        }
    }
    found
}

/// `aegis exec NAME -- sh -c SCRIPT`, whose answer is not a log.
fn exec(aegis: &Aegis, script: &str) -> Output {
    aegis.exec_sh("web", script).expect_ok()
}

#[test]
fn smoke_a_command_has_its_secrets_and_nobody_else_has() {
    let aegis = Aegis::new().with_templates();
    aegis.aegis(["up"]).expect_ok();
    aegis.aegis(["template", "build"]).expect_ok();
    set(&aegis, "KEY", FIRST);
    set(&aegis, "app.token", FIRST);
    set(&aegis, "OVER", FIRST);
    let options = [
        "--secret=KEY",
        "--env=TOKEN=secret.app.token",
        "--env=OVER",
        "--env=MISSING",
        "--env=OVER=by-value",
        "--env-literal=LOOKS=secret.app.token",
        "--secret-file=KEY:/run/secrets/key",
    ];
    // With its first step, and in two pieces.
    let script = "cat /run/secrets/key; echo; printf %s Zx9-first; sleep 1; echo -value-Zx9; echo \"$TOKEN\" >&2; exec sleep 100000";
    let started = aegis.launch("web", &options, &["sh", "-c", script]).expect_ok();
    assert!(started.err().contains("secret `MISSING` is not stored"), "{}", started.err());
    let info = aegis.wait_state("web", "running");
    assert_eq!(info["start_kind"], "template");
    assert_eq!(
        info["secret_keys"],
        serde_json::json!(["KEY", "TOKEN=secret.app.token", "OVER?", "MISSING?"])
    );
    let shown =
        exec(&aegis, "echo $KEY $TOKEN $OVER ${MISSING-none} $LOOKS; stat -c '%a %u' /run/secrets/key");
    assert_eq!(shown.out(), format!("{FIRST} {FIRST} by-value none secret.app.token\n400 0\n"));
    assert_eq!(exec(&aegis, "grep /run/secrets /proc/mounts | cut -d' ' -f3").out(), "tmpfs\n");
    wait_for("the last line", || aegis.logs("web").err().contains("***").then_some(()));
    let log = aegis.logs("web").out();
    assert_eq!(log.lines().filter(|line| *line == "***").count(), 2, "{log}");
    assert!(log.contains("*** *** by-value none secret.app.token\n"), "{log}");
    assert_eq!(processes_with(FIRST), Vec::<String>::new());
    assert_eq!(files_with(aegis.home(), FIRST), "");
    // A new value is there at the next boot, also under a new master key.
    set(&aegis, "KEY", SECOND);
    aegis.aegis(["secret", "rotate-key"]).expect_ok();
    assert_eq!(exec(&aegis, "echo $KEY; cat /run/secrets/key").out(), format!("{FIRST}\n{FIRST}"));
    aegis.instance("restart", "web");
    aegis.wait_state("web", "running");
    let shown = exec(&aegis, "echo $KEY; cat /run/secrets/key; echo; echo $TOKEN");
    assert_eq!(shown.out(), format!("{SECOND}\n{SECOND}\n{FIRST}\n"));
    // A daemon that takes it over knows what to mask, and a hibernated guest keeps what it has.
    aegis.kill_daemon();
    aegis.aegis(["up"]).expect_ok();
    aegis.instance("hibernate", "web");
    assert_eq!(exec(&aegis, "echo woken $KEY").out(), format!("woken {SECOND}\n"));
    wait_for("the line", || aegis.logs("web").out().contains("woken ***\n").then_some(()));
    for value in [FIRST, SECOND] {
        assert_eq!(processes_with(value), Vec::<String>::new());
        assert_eq!(files_with(aegis.home(), value), "");
    }
    let audit = aegis.aegis(["secret", "audit", "web"]).expect_ok().out();
    assert_eq!(audit.matches("injected").count(), 2, "{audit}");
    aegis.aegis(["secret", "get", "KEY"]).expect_code(2);
    assert_eq!(aegis.aegis(["secret", "get", "KEY", "--reveal"]).expect_ok().out(), SECOND);
    assert!(files_with(aegis.home(), "by-value").contains("aegis.db"), "the search finds what is there");
}

#[test]
fn a_change_of_the_key_survives_the_death_of_the_daemon() {
    let aegis = Aegis::new();
    aegis.aegis(["up"]).expect_ok();
    for key in 0..20 {
        set(&aegis, &format!("KEY_{key}"), &format!("{FIRST}-{key}"));
    }
    for round in 0..6 {
        let rotating = aegis.spawn(["secret", "rotate-key"]);
        // Anywhere in it, also before its beginning and after its end.
        let began = std::time::Instant::now();
        while began.elapsed().as_millis() < round * 4 {
            std::hint::spin_loop();
        }
        aegis.kill_daemon();
        aegis_e2e::wait_output(rotating);
        aegis.aegis(["up"]).expect_ok();
        let read = aegis.aegis(["secret", "get", "KEY_7", "--reveal"]).expect_ok();
        assert_eq!(read.out(), format!("{FIRST}-7"), "round {round}");
    }
    assert!(!aegis.home().join("master.key.next").exists());
    // Without its key the daemon runs, and says so.
    aegis.down();
    let key = fs::read(aegis.home().join("master.key")).unwrap();
    fs::remove_file(aegis.home().join("master.key")).unwrap();
    aegis.aegis(["up"]).expect_ok();
    let refused = aegis.aegis(["run", "--secret", "KEY_1", "--", "true"]).expect_code(1).err();
    assert!(refused.contains("the master key is missing: it should be in"), "{refused}");
    assert!(!aegis.home().join("master.key").exists());
    fs::write(aegis.home().join("master.key"), key).unwrap();
    let read = aegis.aegis(["secret", "get", "KEY_19", "--reveal"]).expect_ok();
    assert_eq!(read.out(), format!("{FIRST}-19"));
}
