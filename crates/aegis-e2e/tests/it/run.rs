//! `aegis run`.

use std::io::Read as _;

use aegis_e2e::{Aegis, Process, wait_output};

#[test]
fn smoke_a_command_prints_from_a_vm_and_nothing_is_left() {
    let aegis = Aegis::new();
    // Without a daemon: `run` starts it.
    let output = aegis.aegis(["run", "--", "echo", "hello from aegisvm"]).expect_ok();
    assert_eq!(output.out(), "hello from aegisvm\n");
    assert_eq!(output.err(), "", "nothing but the guest's output on a pipe");
    assert_eq!(aegis.list().len(), 0, "run deletes its instance");
}

#[test]
fn smoke_the_kernel_is_not_the_hosts() {
    let aegis = Aegis::new();
    let guest = aegis.aegis(["run", "--", "uname", "-r"]).expect_ok().out();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(guest.trim(), host.trim());
    assert!(!guest.trim().is_empty());
}

#[test]
fn exit_codes_and_signals_are_passed_through() {
    let aegis = Aegis::new();
    aegis.run_sh("exit 42").expect_code(42);
    aegis.run_sh("kill -KILL $$").expect_code(137);
    aegis.run_sh("kill -TERM $$").expect_code(143);
}

#[test]
fn a_missing_command_is_127_and_a_file_that_is_no_program_126() {
    let aegis = Aegis::new();
    let missing = aegis.aegis(["run", "--", "no-such-command"]).expect_code(127);
    assert!(missing.err().contains("no-such-command"), "{}", missing.err());
    aegis.aegis(["run", "--", "/etc/passwd"]).expect_code(126);
    assert_eq!(aegis.list().len(), 0);
}

#[test]
fn both_outputs_stay_apart_and_lines_keep_their_order() {
    let aegis = Aegis::new();
    let output = aegis.run_sh("for i in 1 2 3; do echo out $i; echo err $i >&2; done").expect_ok();
    assert_eq!(output.out(), "out 1\nout 2\nout 3\n");
    assert_eq!(output.err(), "err 1\nerr 2\nerr 3\n");
}

#[test]
fn a_megabyte_without_a_newline_arrives_whole() {
    let aegis = Aegis::new();
    let output = aegis.run_sh("head -c 1000000 /dev/zero | tr '\\0' x").expect_ok();
    assert_eq!(output.stdout.len(), 1_000_000);
    assert!(output.stdout.iter().all(|&b| b == b'x'));
}

#[test]
fn bytes_that_are_not_text_arrive_exactly() {
    let aegis = Aegis::new();
    let output = aegis
        .aegis(["run", "--", "python3", "-c", "import os; os.write(1, bytes(range(256)) * 400)"])
        .expect_ok();
    let expected: Vec<u8> = (0..=255u8).cycle().take(256 * 400).collect();
    assert!(output.stdout == expected, "{} bytes", output.stdout.len());
}

#[test]
fn environment_and_working_directory_reach_the_command() {
    let aegis = Aegis::new();
    let script = "echo $GREETING; pwd; echo $HOME";
    let args = ["run", "--env", "GREETING=a b=c", "--workdir", "/tmp", "--", "sh", "-c", script];
    assert_eq!(aegis.aegis(args).expect_ok().out(), "a b=c\n/tmp\n/root\n");
}

#[test]
fn memory_and_cpus_are_what_was_asked_for() {
    let aegis = Aegis::new();
    let script = "nproc; awk '/MemTotal/{print ($2 > 600000 && $2 < 800000)}' /proc/meminfo";
    let args = ["run", "--memory", "768", "--cpus", "2", "--", "sh", "-c", script];
    assert_eq!(aegis.aegis(args).expect_ok().out(), "2\n1\n");
}

#[test]
fn ctrl_c_ends_the_run_and_deletes_its_instance() {
    let aegis = Aegis::new();
    let mut child = aegis.spawn(["run", "--name", "loop", "--", "sh", "-c", "echo ready; sleep 100000"]);
    let mut said = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"ready\n");
    Process { pid: child.id(), program: "aegis".into() }.signal("INT");
    let output = wait_output(child).expect_code(130);
    assert_eq!(output.out(), "");
    assert_eq!(aegis.list().len(), 0);
}

#[test]
fn a_timeout_is_124_and_deletes_the_instance() {
    let aegis = Aegis::new();
    aegis.aegis(["run", "--timeout", "3s", "--", "sleep", "100000"]).expect_code(124);
    assert_eq!(aegis.list().len(), 0);
}

#[test]
fn wrong_usage_is_refused_before_anything_starts() {
    let aegis = Aegis::new();
    aegis.aegis(["run", "--bogus", "--", "true"]).expect_code(2);
    aegis.aegis(["run"]).expect_code(2);
    aegis.aegis(["run", "--memory", "1", "--", "true"]).expect_code(2);
    let unknown = aegis.aegis(["run", "--image", "no-such-image", "--pull", "never", "--", "true"]);
    assert_ne!(unknown.code, Some(0));
    assert!(unknown.err().contains("no-such-image"), "{}", unknown.err());
}
