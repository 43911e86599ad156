//! `aegis service`, with scripts as the service manager.
#![cfg(target_os = "linux")]

use std::fs;
use std::process::Command;

use crate::fake::{Fake, output, script};

fn command(fake: &Fake, args: &[&str]) -> Command {
    let mut command = fake.command(args);
    let home = fake.home();
    command.env("HOME", home).env("PATH", format!("{}:/usr/bin:/bin", home.display()));
    command.env("AEGIS_DAEMON", home.join("aegisd"));
    command
}

fn prepared(systemctl: &str) -> Fake {
    let fake = Fake::absent();
    let home = fake.home().to_owned();
    script(&home, "aegisd", "exit 1");
    script(&home, "systemctl", &format!("echo \"$*\" >> '{}/calls'\n{systemctl}", home.display()));
    script(&home, "loginctl", "echo no");
    fake
}

#[test]
fn a_service_is_installed_and_removed() {
    let fake = prepared("case \"$*\" in *is-active*) exit 3;; esac");
    let printed = output(&mut command(&fake, &["service", "install", "--print"]));
    let text = fake.render(&output(&mut command(&fake, &["service", "install"])));
    assert!(text.starts_with("exit: 0\n") && text.contains("loginctl enable-linger"), "{text}");
    let units = fake.home().join(".config/systemd/user");
    let unit = fs::read_dir(&units).unwrap().next().unwrap().unwrap();
    let name = unit.file_name().into_string().unwrap();
    assert!(name.starts_with("aegisd-") && name.ends_with(".service"), "{name}");
    let content = fs::read_to_string(unit.path()).unwrap();
    assert_eq!(content.as_bytes(), printed.stdout);
    let home = fake.home().display().to_string();
    let start =
        format!("ExecStart=\"{home}/aegisd\" --home \"{home}\" --log-file \"{home}/data/aegisd.log\"\n");
    for line in [&start, "Restart=on-failure\n", "KillMode=process\n", "WantedBy=default.target\n"] {
        assert!(content.contains(line), "{line}: {content}");
    }
    let text = fake.render(&output(&mut command(&fake, &["service", "uninstall"])));
    assert!(text.starts_with("exit: 0\n"), "{text}");
    assert_eq!(fs::read_dir(&units).unwrap().count(), 0);
    let calls = fs::read_to_string(fake.home().join("calls")).unwrap();
    let calls: Vec<&str> = calls.lines().filter(|call| !call.contains("show-environment")).collect();
    assert_eq!(
        calls,
        [
            format!("--user is-active --quiet {name}"),
            "--user daemon-reload".to_owned(),
            format!("--user enable --now {name}"),
            format!("--user disable --now {name}"),
            "--user daemon-reload".to_owned(),
        ]
    );
}

#[test]
fn without_systemd_nothing_is_written() {
    let fake = prepared("echo 'Failed to connect to bus' >&2; exit 1");
    let text = fake.render(&output(&mut command(&fake, &["service", "install"])));
    assert!(text.starts_with("exit: 1\n") && text.contains("Failed to connect to bus"), "{text}");
    assert!(text.contains("`aegis service install --print`"), "{text}");
    assert!(!fake.home().join(".config").exists());
}
