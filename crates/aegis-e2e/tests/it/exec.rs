//! `aegis exec`.

use std::thread;

use aegis_e2e::Aegis;
use sha2::{Digest as _, Sha256};

#[test]
fn smoke_exec_runs_beside_the_command() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    let output = aegis.exec_sh("box", "echo out; echo err >&2; exit 3").expect_code(3);
    assert_eq!((output.out(), output.err()), ("out\n".to_owned(), "err\n".to_owned()));
    // The instance's own command is a process of the same machine.
    aegis.exec_sh("box", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'sleep 100000'").expect_ok();
}

#[test]
fn two_hundred_execs_in_a_row() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    for i in 0..200 {
        let output = aegis.aegis(["exec", "box", "--", "echo", &i.to_string()]).expect_ok();
        assert_eq!(output.out(), format!("{i}\n"));
    }
    // Nothing of them is left in the guest: no zombie, no process.
    let left = aegis.exec_sh("box", "cat /proc/[0-9]*/stat | awk '$3==\"Z\"' | wc -l").expect_ok();
    assert_eq!(left.out().trim(), "0");
    assert_eq!(aegis.info("box")["active_execs"], 0);
}

#[test]
fn twenty_execs_at_once_keep_their_output_apart() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    thread::scope(|scope| {
        for i in 0..20 {
            let aegis = &aegis;
            scope.spawn(move || {
                let script = format!("for n in 1 2 3; do echo {i}-$n; done; exit {i}");
                let output = aegis.exec_sh("box", &script).expect_code(i);
                assert_eq!(output.out(), format!("{i}-1\n{i}-2\n{i}-3\n"));
            });
        }
    });
}

#[test]
fn binary_output_arrives_exactly() {
    let aegis = Aegis::new();
    aegis.start_sleeper("box");
    aegis.exec_sh("box", "head -c 3000000 /dev/urandom > /root/random").expect_ok();
    let bytes = aegis.aegis(["exec", "box", "--", "cat", "/root/random"]).expect_ok().stdout;
    assert_eq!(bytes.len(), 3_000_000);
    let ours: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let theirs = aegis.aegis(["exec", "box", "--", "sha256sum", "/root/random"]).expect_ok().out();
    assert_eq!(theirs.split_whitespace().next(), Some(ours.as_str()));
    let long = aegis.exec_sh("box", "head -c 1000000 /dev/zero | tr '\\0' y").expect_ok();
    assert_eq!(long.stdout.len(), 1_000_000);
}

#[test]
fn exec_knows_its_environment_failures_and_limits() {
    let aegis = Aegis::new();
    aegis.aegis(["up"]).expect_ok();
    aegis
        .aegis([
            "instance", "start", "--name", "box", "--env", "A=1", "--env", "B=2", "--", "sleep", "100000",
        ])
        .expect_ok();
    aegis.wait_state("box", "running");
    let args = ["exec", "--env", "B=3", "--workdir", "/usr", "box", "--", "sh", "-c", "echo $A $B; pwd"];
    assert_eq!(aegis.aegis(args).expect_ok().out(), "1 3\n/usr\n");
    let missing = aegis.aegis(["exec", "box", "--", "no-such-command"]).expect_code(127);
    assert!(missing.err().contains("no-such-command"), "{}", missing.err());
    aegis.aegis(["exec", "box", "--", "/etc/passwd"]).expect_code(126);
    aegis.exec_sh("box", "kill -SEGV $$").expect_code(139);
    aegis.aegis(["exec", "--timeout", "2s", "box", "--", "sleep", "1000"]).expect_code(124);
    aegis.aegis(["exec", "nobody", "--", "true"]).expect_code(1);
}

#[test]
fn exec_output_is_in_the_log_with_its_source() {
    let aegis = Aegis::new();
    aegis.start("box", &["sh", "-c", "echo from the command; sleep 100000"]);
    aegis.exec_sh("box", "echo from exec").expect_ok();
    let log = aegis.aegis(["logs", "box"]).expect_ok().out();
    assert!(log.contains("from the command\n"), "{log}");
    assert!(log.contains("[exec] from exec\n"), "{log}");
}
