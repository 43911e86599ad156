//! Ports of instances on the host, and what happens to those who connect.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;

use aegis_e2e::{Aegis, PATIENCE, net, wait_for};
use sha2::{Digest as _, Sha256};

use crate::guest::{COUNTER, HELLO, SERVERS, count};

/// So many clients connect at the same moment; each must get its own answer and nobody a reset.
fn stampede(port: u16) {
    let clients: Vec<_> =
        (0..100).map(|i| thread::spawn(move || net::ask(port, &format!("client {i}")))).collect();
    for (i, client) in clients.into_iter().enumerate() {
        let question = format!("client {i}");
        let expected = format!("{question}|{}", question.len());
        assert_eq!(client.join().unwrap().unwrap(), expected);
    }
}

#[test]
fn a_hundred_clients_at_once_are_one_wake_and_a_hundred_answers() {
    let aegis = Aegis::new();
    aegis.start_with("box", &["--expose", "80"], SERVERS);
    let port = aegis.port("box", 80);
    wait_for("the server", || net::ask(port, "x").ok());
    let before = aegis.stats("box");
    let numbers = |stats: &serde_json::Value| {
        let starts = &stats["starts"];
        (
            stats["wakes"].as_u64().unwrap(),
            starts["restore"].as_u64().unwrap(),
            starts["cold"].as_u64().unwrap(),
        )
    };
    let (wakes, restores, cold) = numbers(&before);

    aegis.instance("hibernate", "box");
    stampede(port);
    assert_eq!(numbers(&aegis.stats("box")), (wakes + 1, restores + 1, cold), "hibernated");

    aegis.instance("pause", "box");
    stampede(port);
    assert_eq!(numbers(&aegis.stats("box")), (wakes + 2, restores + 1, cold), "paused");

    aegis.instance("stop", "box");
    stampede(port);
    assert_eq!(numbers(&aegis.stats("box")), (wakes + 3, restores + 1, cold + 1), "stopped");
    assert_eq!(aegis.info("box")["active_connections"], 0);
}

/// Bytes that are all different in their order.
fn pattern(length: u32) -> Vec<u8> {
    (0..length.div_ceil(4))
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_ne_bytes())
        .take(length as usize)
        .collect()
}

#[test]
fn bytes_and_ends_arrive_as_they_were_sent() {
    let aegis = Aegis::new();
    aegis.start_with("box", &["--expose", "80/tcp", "--expose", "81/tcp"], SERVERS);
    let port = aegis.port("box", 80);
    assert_eq!(net::ask(port, "hello").unwrap(), "hello|5");

    // Ten megabytes in both directions at once; the guest says how much it got after our end.
    let sent = pattern(10 << 20);
    let mut stream = net::connect_v6(port).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let data = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&data).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    let (echo, total) = received.split_at(sent.len());
    assert_eq!(Sha256::digest(echo), Sha256::digest(&sent));
    assert_eq!(total, b"|10485760");

    // The guest ends its half first and still gets what we say.
    let mut stream = net::connect(aegis.port("box", 81)).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "goodbye");
    stream.write_all(&sent[..100_000]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    wait_for("the guest to have everything", || {
        aegis.logs("box").out().contains("after goodbye: 100000").then_some(())
    });
}

/// Speaks HTTP/1.1 to the router, as a program that leaves the connection open.
fn http(port: u16, host: &str, headers: &str) -> TcpStream {
    let mut stream = net::connect(port).unwrap();
    write!(stream, "GET /some/path HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n").unwrap();
    stream
}

fn answer(mut stream: TcpStream) -> (u16, String) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    net::answer_parts(&answer).unwrap()
}

/// The port of the HTTP router.
fn router_port(aegis: &Aegis) -> u16 {
    let status: serde_json::Value =
        serde_json::from_str(&net::get(aegis.home(), "/v1/status").unwrap().1).unwrap();
    let address = status["router"]["address"].as_str().unwrap_or_else(|| panic!("{status}"));
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn the_http_router_finds_instances_by_name_and_passes_websockets() {
    let aegis = Aegis::new();
    aegis.start_with("web", &["--expose", "8080/http"], SERVERS);
    let router = router_port(&aegis);
    let close = "Connection: close\r\n";
    let found = (200, "/some/path".to_owned());
    assert_eq!(answer(http(router, &format!("web.localhost:{router}"), close)), found);
    aegis.instance("hibernate", "web");
    assert_eq!(answer(http(router, "127.0.0.1", &format!("X-Aegis-Instance: web\r\n{close}"))), found);
    // The only instance needs no name.
    assert_eq!(answer(http(router, "localhost", close)), found);
    assert_eq!(answer(http(router, "nobody.localhost", close)).0, 503);

    aegis.instance("hibernate", "web");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut stream = http(router, "web.localhost", upgrade);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"any bytes \x00\xff").unwrap();
    let mut echo = [0; 12];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"any bytes \x00\xff");
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "|12");

    aegis.instance("disable", "web");
    assert_eq!(answer(http(router, "web.localhost", close)).0, 503);
    aegis.aegis(["instance", "delete", "web"]).expect_ok();
    assert_eq!(answer(http(router, "web.localhost", close)).0, 503);
}

#[test]
fn a_busy_port_that_was_asked_for_is_refused() {
    let aegis = Aegis::new();
    aegis.aegis(["up"]).expect_ok();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let refused = aegis.launch("box", &["--expose", &format!("{port}:80")], &["true"]).expect_code(1);
    assert!(refused.err().contains(&format!("public port {port} is already used")), "{}", refused.err());
    assert!(aegis.list().is_empty(), "nothing is left of it");

    // One of our own is named.
    aegis.start_with("first", &["--expose", "80"], HELLO);
    let port = aegis.port("first", 80);
    let refused = aegis.launch("second", &["--expose", &format!("{port}:80")], &["true"]).expect_code(1);
    assert!(refused.err().contains("first"), "{}", refused.err());
    let refused = aegis.aegis(["instance", "expose", "first", &format!("{port}:81")]).expect_code(1);
    assert!(refused.err().contains(&port.to_string()), "{}", refused.err());
    assert_eq!(net::ask(port, "").unwrap(), "hello\n");
}

#[test]
fn ports_stay_over_stops_and_daemons_and_can_be_changed_at_run_time() {
    let aegis = Aegis::new();
    aegis.start_with("box", &["--expose", "80"], HELLO);
    let port = aegis.port("box", 80);
    let answers = |when: &str| {
        assert_eq!(aegis.port("box", 80), port, "{when}");
        assert_eq!(net::ask(port, "").unwrap(), "hello\n", "{when}");
    };
    answers("at first");
    aegis.instance("stop", "box");
    answers("after a stop");
    aegis.down();
    net::connect(port).unwrap_err();
    aegis.aegis(["up"]).expect_ok();
    answers("after down and up");
    aegis.kill_daemon();
    aegis.aegis(["up"]).expect_ok();
    answers("after the daemon was killed");

    // A disabled instance is not to be reached; enabled again it has the same port.
    aegis.instance("disable", "box");
    net::connect(port).unwrap_err();
    aegis.kill_daemon();
    aegis.aegis(["up"]).expect_ok();
    net::connect(port).unwrap_err();
    aegis.instance("start", "box");
    answers("after it was enabled");

    // At run time: another port for another server.
    let script = "printf '#!/bin/sh\\necho more\\n' > /tmp/more; chmod +x /tmp/more; \
                  nc -ll -p 81 -e /tmp/more > /dev/null 2>&1 &";
    aegis.exec_sh("box", script).expect_ok();
    let said = aegis.aegis(["instance", "expose", "box", "81"]).expect_ok().out();
    let more = aegis.port("box", 81);
    assert!(said.contains(&more.to_string()), "{said}");
    assert_eq!(net::ask(more, "").unwrap(), "more\n");
    aegis.aegis(["instance", "unexpose", "box", "81"]).expect_ok();
    net::connect(more).unwrap_err();
    let ports: BTreeSet<u64> = aegis.info("box")["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["guest_port"].as_u64().unwrap())
        .collect();
    assert_eq!(ports, BTreeSet::from([80]));
    answers("after the other one was unexposed");
}

#[test]
fn a_connection_to_a_server_that_is_late_is_held_and_answered() {
    let aegis = Aegis::new();
    let late = ["sh", "-c", &format!("sleep 2; {}", HELLO[2])];
    aegis.start_with("late", &["--expose", "80"], &late);
    let port = aegis.port("late", 80);
    assert_eq!(net::ask(port, "").unwrap(), "hello\n");
    aegis.instance("restart", "late");
    let patience = format!("{}s", PATIENCE.as_secs());
    let wait = ["instance", "wait", "late", "--for", "port", "--port", "80", "--timeout", &patience];
    aegis.aegis(wait).expect_ok();
    assert_eq!(net::ask(port, "").unwrap(), "hello\n");
    // Nobody ever listens there.
    let wait = ["instance", "wait", "late", "--for", "port", "--port", "82", "--timeout", "1s"];
    aegis.aegis(wait).expect_code(124);
    aegis.aegis(["instance", "wait", "late", "--for", "running", "--timeout", &patience]).expect_ok();
}

#[test]
fn a_connection_that_the_guest_loses_is_reset_and_not_ended() {
    let aegis = Aegis::new();
    aegis.start_with("box", &["--expose", "80"], COUNTER);
    let before = count(&aegis, "box");
    let mut stream = net::connect(aegis.port("box", 80)).unwrap();
    wait_for("the connection to count", || (aegis.info("box")["active_connections"] == 1).then_some(()));
    // Somebody asked for it: the connection does not stand in the way.
    aegis.instance("hibernate", "box");
    let mut rest = Vec::new();
    let cut = stream.read_to_end(&mut rest).unwrap_err();
    assert_eq!((cut.kind(), rest.len()), (std::io::ErrorKind::ConnectionReset, 0));
    assert_eq!(count(&aegis, "box"), before.next());
}
