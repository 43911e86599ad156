//! The network of guests: what is denied, what is not, and what stays over a rest.
//!
//! Where foreign addresses are tried the daemon runs in a network namespace that has only a loopback interface: nothing
//! can leave the machine, whatever is wrong.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::process::Command;
use std::thread;

use aegis_e2e::{Aegis, finish, wait_for};
use serde_json::Value;

const REACH: &str = include_str!("../../guest/reach.py");
const ECHO: &str = include_str!("../../guest/echo.py");

/// In the namespace: brings loopback up, gives it one more address, and becomes `aegis up`.
const UP: &str = r#"
import fcntl, os, socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
address = struct.pack("16sH2s4s8x", b"lo:1", socket.AF_INET, b"", socket.inet_aton("9.8.7.6"))
fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 1))
fcntl.ioctl(s, 0x8916, address)
os.execv(sys.argv[1], [sys.argv[1], "up"])
"#;

/// An installation whose daemon and workers see nothing but loopback.
fn isolated() -> Aegis {
    let aegis = Aegis::new();
    let like = aegis.command("aegis", ["up"]);
    let mut command = Command::new("unshare");
    let is_root = finish({
        let mut id = Command::new("id");
        id.arg("-u");
        id
    })
    .out()
    .trim()
        == "0";
    if !is_root {
        command.arg("--map-root-user");
    }
    command.args(["--net", "--", "python3", "-c", UP]).arg(aegis.program("aegis"));
    for (key, value) in like.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    finish(command).expect_ok();
    aegis
}

/// What came of each attempt, in order.
fn reach(aegis: &Aegis, name: &str, attempts: &[String]) -> Vec<String> {
    let args = ["exec", name, "--", "python3", "-SE", "-c", REACH];
    let output = aegis.aegis(args.iter().map(ToString::to_string).chain(attempts.to_vec())).expect_ok();
    output.out().lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

fn events(aegis: &Aegis, name: &str, options: &[&str]) -> Vec<Value> {
    let args = ["net", "log", name, "--json"];
    let output = aegis.aegis(args.iter().chain(options)).expect_ok();
    output.out().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn reason_of(events: &[Value], destination: &str) -> String {
    let event = events.iter().rfind(|event| event["destination"] == destination);
    event.and_then(|event| event["reason"].as_str()).unwrap_or("not denied").to_owned()
}

/// A server on the host that sends back what it gets.
fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || -> std::io::Result<()> {
                let mut stream = stream?;
                let mut buffer = vec![0; 1 << 16];
                loop {
                    match stream.read(&mut buffer)? {
                        0 => return stream.shutdown(Shutdown::Write),
                        count => stream.write_all(&buffer[..count])?,
                    }
                }
            });
        }
    });
    port
}

#[track_caller]
fn echo(aegis: &Aegis, name: &str, port: u16, count: u32, bytes: u32) {
    let numbers = [u32::from(port), count, bytes].map(|n| n.to_string());
    let args = ["exec", name, "--", "python3", "-SE", "-c", ECHO].map(str::to_owned);
    let output = aegis.aegis(args.into_iter().chain(numbers)).expect_ok();
    assert_eq!(output.out(), "ok\n");
}

#[test]
fn what_is_denied_is_refused_at_once_and_logged() {
    let aegis = isolated();
    aegis.launch("box", &[], &["sleep", "100000"]).expect_ok();
    aegis.wait_state("box", "running");
    let denied = [
        ("10.0.0.1:80", "private address"),
        ("172.16.5.5:443", "private address"),
        ("192.168.0.1:22", "private address"),
        ("192.168.127.1:80", "network of the guest itself"),
        ("192.168.127.9:80", "network of the guest itself"),
        ("169.254.169.254:80", "metadata service"),
        ("100.64.0.1:80", "shared address (CGNAT)"),
        ("9.8.7.6:80", "address of the host"),
    ];
    let attempts: Vec<String> = denied.iter().map(|(to, _)| format!("tcp:{to}")).collect();
    assert_eq!(reach(&aegis, "box", &attempts), vec!["ECONNREFUSED"; denied.len()]);
    let datagrams = ["udp:10.0.0.1:53", "udp:169.254.169.254:123"].map(str::to_owned);
    assert_eq!(reach(&aegis, "box", &datagrams), ["EHOSTUNREACH"; 2]);
    // Allowed, and the host has no way there.
    assert_eq!(reach(&aegis, "box", &["tcp:1.1.1.1:443".to_owned()]), ["ENETUNREACH"]);
    let logged = events(&aegis, "box", &[]);
    for (to, reason) in denied {
        assert_eq!(reason_of(&logged, to), reason, "{to}");
    }
    assert_eq!(reason_of(&logged, "10.0.0.1:53"), "private address");
    assert_eq!(reason_of(&logged, "1.1.1.1:443"), "not denied");
    assert!(events(&aegis, "box", &["--denied"]).iter().all(|event| event["allowed"] == false));

    // A scan of a private network: every address says no, and the instance stays as quick as it was.
    let scan: Vec<String> = (0..=255).map(|n| format!("tcp:10.7.7.{n}:22")).collect();
    assert_eq!(reach(&aegis, "box", &scan), vec!["ECONNREFUSED"; scan.len()]);
}

#[test]
fn an_instance_without_a_network_has_none() {
    let aegis = isolated();
    let run = ["run", "--net", "none", "--", "sh", "-c"];
    let output = aegis.aegis(run.iter().chain(&["cat /sys/class/net/eth0/operstate; cat /proc/net/route"]));
    assert_eq!(output.expect_ok().out().lines().count(), 2, "an interface that is down, and no route");
    let refused = aegis.aegis(["run", "--net", "none", "--net", "allow:a.example", "--", "true"]);
    assert!(refused.expect_code(2).err().contains("`none` allows nothing"));
    assert!(
        aegis
            .aegis(["run", "--net", "allow:a..b", "--", "true"])
            .expect_code(2)
            .err()
            .contains("it is no name")
    );
}

#[test]
fn ports_of_the_host_are_reached_before_and_after_a_rest() {
    let port = echo_server();
    let aegis = Aegis::new();
    let port_text = port.to_string();
    aegis.start_with("box", &["--net", "allow:a.example", "--host-port", &port_text], &["sleep", "100000"]);
    echo(&aegis, "box", port, 1, 3_000_000);
    echo(&aegis, "box", port, 50, 20_000);
    for action in ["pause", "hibernate"] {
        aegis.instance(action, "box");
        echo(&aegis, "box", port, 3, 100_000);
    }
    assert_eq!(aegis.info("box")["start_kind"], "restore");
    aegis.kill_daemon();
    aegis.aegis(["up"]).expect_ok();
    echo(&aegis, "box", port, 1, 100_000);
    let other = reach(&aegis, "box", &[format!("tcp:192.168.127.1:{}", port ^ 1)]);
    assert_eq!(other, ["ECONNREFUSED"]);
    assert_eq!(aegis.info("box")["net"]["host_ports"][0], port);
}

#[test]
fn a_connection_to_the_outside_lasts_over_a_pause_and_is_cut_by_a_hibernation() {
    const LISTENS: &str = "import socket, sys
with socket.create_connection(('host.aegis.internal', int(sys.argv[1]))) as s:
    try:
        while line := s.recv(100):
            print(line.decode(), end='', flush=True)
    except OSError as e:
        print(type(e).__name__, flush=True)
socket.create_server(('', 1)).accept()";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let aegis = Aegis::new();
    aegis.start_with("box", &["--host-port", &port], &["python3", "-SE", "-c", LISTENS, &port]);
    let (mut connection, _) = listener.accept().unwrap();
    let said = |text: &str| wait_for(text, || aegis.logs("box").out().contains(text).then_some(()));
    connection.write_all(b"before\n").unwrap();
    said("before");
    aegis.instance("pause", "box");
    connection.write_all(b"meanwhile\n").unwrap();
    aegis.instance("resume", "box");
    said("meanwhile");
    connection.write_all(b"after\n").unwrap();
    said("after");
    aegis.instance("hibernate", "box");
    assert!(!matches!(connection.read(&mut [0]), Ok(1..)), "it is cut on this side");
    aegis.instance("resume", "box");
    assert_eq!(aegis.info("box")["start_kind"], "restore");
    // And on that one, although nobody there says anything.
    said("ConnectionResetError");
}

#[test]
fn rules_count_at_once_and_after_the_next_start() {
    let aegis = isolated();
    aegis.launch("box", &["--net", "allow:a.example"], &["sleep", "100000"]).expect_ok();
    aegis.wait_state("box", "running");
    let attempt = ["tcp:1.1.1.1:443".to_owned()];
    assert_eq!(reach(&aegis, "box", &attempt), ["ECONNREFUSED"]);
    assert_eq!(reason_of(&events(&aegis, "box", &[]), "1.1.1.1:443"), "no rule allows it");
    let shown = aegis.aegis(["net", "allow", "box", "1.1.1.0/24"]).expect_ok().out();
    assert_eq!(shown, "Network of box: allow:a.example,1.1.1.0/24\n");
    assert_eq!(reach(&aegis, "box", &attempt), ["ENETUNREACH"], "allowed, and the host has no way there");
    aegis.aegis(["instance", "restart", "box"]).expect_ok();
    aegis.wait_state("box", "running");
    assert_eq!(reach(&aegis, "box", &attempt), ["ENETUNREACH"]);
    aegis.aegis(["net", "deny", "box", "1.1.1.1:443"]).expect_ok();
    assert_eq!(reach(&aegis, "box", &attempt), ["ECONNREFUSED"]);
    assert_eq!(reason_of(&events(&aegis, "box", &[]), "1.1.1.1:443"), "rule deny:1.1.1.1:443");
    // Names that are not allowed are not asked for.
    let lookup = aegis.aegis(["exec", "box", "--", "nslookup", "b.example"]);
    assert!((lookup.out() + &lookup.err()).contains("REFUSED"));
    assert_eq!(reason_of(&events(&aegis, "box", &[]), "b.example"), "no rule allows it");
    assert!(aegis.aegis(["net", "allow", "nobody", "a"]).expect_code(1).err().contains("no instance"));
    assert!(aegis.aegis(["net", "allow", "box", "::1"]).expect_code(2).err().contains("no IPv6"));
}

#[test]
fn copies_of_a_template_have_hardware_addresses_of_their_own() {
    let aegis = Aegis::new().with_templates();
    aegis.aegis(["up"]).expect_ok();
    aegis.aegis(["template", "build"]).expect_ok();
    let mac = || {
        let output = aegis.run_sh("cat /sys/class/net/eth0/address /etc/resolv.conf").expect_ok().out();
        assert!(output.ends_with("nameserver 192.168.127.1\n"), "{output}");
        output.lines().next().unwrap().to_owned()
    };
    let (one, two) = (mac(), mac());
    assert!(one != two && one.starts_with("02:") && two.starts_with("02:"), "{one} {two}");
    wait_for("both runs to be gone", || aegis.list().is_empty().then_some(()));
}
