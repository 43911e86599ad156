//! Which instance a request reaches, and what the router itself answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aegis_router::{BindError, HttpRouter, Limits, Refusal};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::fake::{Fake, Server, serve, within};

pub(crate) fn bind(fake: &Arc<Fake>) -> HttpRouter {
    HttpRouter::bind(fake.gate(), "127.0.0.1:0".parse().unwrap()).unwrap()
}

pub(crate) async fn connect(router: &HttpRouter) -> TcpStream {
    within(TcpStream::connect(router.local_addr())).await.unwrap()
}

/// Sends a request and reads to the end of the connection.
pub(crate) async fn send(address: SocketAddr, request: &str) -> String {
    let mut stream = within(TcpStream::connect(address)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(router: &HttpRouter, headers: &str) -> String {
    send(router.local_addr(), &format!("GET / HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")).await
}

pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match within(stream.read_u8()).await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// A server that answers every request with its name, on one connection as long as the client wants.
async fn named(name: &'static str) -> Server {
    serve(move |mut stream| async move {
        while !read_head(&mut stream).await.is_empty() {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

async fn two_instances() -> (Arc<Fake>, HttpRouter) {
    let fake = Fake::new();
    fake.add("web", 1, Some(80), true);
    fake.add("api", 2, Some(81), true);
    fake.serve(1, 80, named("I am web").await);
    fake.serve(2, 81, named("I am api").await);
    let router = bind(&fake);
    (fake, router)
}

#[tokio::test]
async fn header_and_host_choose_the_instance() {
    let (_fake, router) = two_instances().await;
    for (headers, name) in [
        ("Host: localhost\r\nX-Aegis-Instance: web\r\n", "I am web"),
        ("Host: localhost\r\nX-Aegis-Instance: inst-2\r\n", "I am api"),
        ("Host: web.localhost:8099\r\n", "I am web"),
        ("Host: API.LOCALHOST\r\n", "I am api"),
        ("Host: inst-2.localhost\r\n", "I am api"),
        ("Host: web.localhost\r\nX-Aegis-Instance: api\r\n", "I am api"),
    ] {
        let answer = get(&router, headers).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(name), "{headers}: {answer}");
    }
    for (headers, word) in [
        ("Host: localhost\r\n", "X-Aegis-Instance"),
        ("Host: other.localhost\r\n", "`other`"),
        ("Host: localhost\r\nX-Aegis-Instance: other\r\n", "`other`"),
    ] {
        let answer = get(&router, headers).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(word), "{headers}: {answer}");
    }
}

#[tokio::test]
async fn the_only_instance_is_meant_by_loopback_names_alone() {
    let fake = Fake::new();
    fake.add("web", 1, Some(80), true);
    fake.serve(1, 80, named("I am web").await);
    let router = bind(&fake);
    for host in ["localhost", "localhost:8099", "127.0.0.1", "[::1]:8099"] {
        let answer = get(&router, &format!("Host: {host}\r\n")).await;
        assert!(answer.ends_with("I am web"), "{host}: {answer}");
    }
    let answer = send(router.local_addr(), "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("I am web"), "{answer}");
    for host in ["evil.example", "evil.example:8099", "localhost.evil.example"] {
        let answer = get(&router, &format!("Host: {host}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && !answer.contains("I am"), "{host}: {answer}");
    }
    // Nothing was woken for those.
    assert_eq!(fake.events().iter().filter(|event| **event == "counted").count(), 5);
}

#[tokio::test]
async fn requests_of_one_client_may_go_to_different_instances() {
    let (fake, router) = two_instances().await;
    let mut client = connect(&router).await;
    for name in ["web", "api", "web"] {
        let request = format!("GET / HTTP/1.1\r\nHost: {name}.localhost\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
        let mut body = [0; 8];
        within(client.read_exact(&mut body)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&body), format!("I am {name}"));
        // An idle client keeps nothing awake.
        fake.wait_for_count(0).await;
    }
}

#[tokio::test]
async fn refusals_have_their_status() {
    let fake = Fake::new();
    fake.add("off", 1, Some(80), false);
    fake.add("closed", 2, None, true);
    fake.add("empty", 3, Some(80), true);
    let router = bind(&fake);
    let check = async |name: &str, status: &str, retry: bool, word: &str| {
        let answer = get(&router, &format!("Host: {name}.localhost\r\n")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(word),
            "{name}: {answer}"
        );
        assert_eq!(answer.contains("retry-after: 3\r\n"), retry, "{name}: {answer}");
    };
    check("off", "503", false, "disabled").await;
    check("closed", "503", false, "exposes no port").await;
    check("empty", "502", false, "nobody listens").await;
    let why = Refusal::Failed { message: "no kernel".to_owned() };
    for (number, refusal, word) in
        [(4, why, "no kernel"), (5, Refusal::Busy, "too many"), (6, Refusal::Timeout, "in time")]
    {
        fake.add("late", number, Some(80), true);
        fake.serve(number, 80, Server::Refuses(refusal));
        check("late", "503", true, word).await;
    }
    fake.add("mute", 7, Some(80), true);
    fake.serve(7, 80, serve(|_stream| async {}).await);
    check("mute", "503", true, "no answer").await;
    fake.wait_for_count(0).await;
}

#[tokio::test]
async fn bad_requests_are_refused_before_anything_wakes() {
    let (fake, router) = two_instances().await;
    let long = "x".repeat(70_000);
    for (request, status) in [
        (format!("GET / HTTP/1.1\r\nHost: web.localhost\r\nX-Long: {long}\r\n\r\n"), "431"),
        ("GET / HTTP/1.1\r\nHost: web.localhost\r\nHost: api.localhost\r\n\r\n".to_owned(), "400"),
        ("CONNECT web.localhost:80 HTTP/1.1\r\nHost: web.localhost:80\r\n\r\n".to_owned(), "400"),
        ("nonsense\r\n\r\n".to_owned(), "400"),
    ] {
        let mut client = connect(&router).await;
        // The router may have answered and gone before all of it is written.
        let _ = client.write_all(request.as_bytes()).await;
        let head = read_head(&mut client).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
    assert_eq!(fake.events(), [""; 0]);
}

#[tokio::test]
async fn it_listens_on_both_loopback_addresses_or_says_why_not() {
    let (fake, router) = two_instances().await;
    let port = router.local_addr().port();
    if TcpListener::bind("[::1]:0").await.is_ok() {
        let address = format!("[::1]:{port}").parse().unwrap();
        let request = "GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n";
        assert!(send(address, request).await.ends_with("I am web"));
    }
    let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let BindError { address: named, source } = HttpRouter::bind(fake.gate(), address).err().unwrap();
    assert_eq!((named, source.kind()), (address, std::io::ErrorKind::AddrInUse));
}

#[tokio::test]
async fn clients_above_the_limit_wait_for_a_place() {
    let fake = Fake::new();
    fake.add("web", 1, Some(80), true);
    fake.serve(1, 80, named("I am web").await);
    let limits = Limits { http_clients: 1, ..Limits::default() };
    let router = HttpRouter::bind(fake.gate_with(limits), "127.0.0.1:0".parse().unwrap()).unwrap();
    let mut first = connect(&router).await;
    first.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(read_head(&mut first).await.starts_with("HTTP/1.1 200"));
    let second = get(&router, "Host: localhost\r\n");
    tokio::pin!(second);
    let early = tokio::time::timeout(std::time::Duration::from_millis(50), &mut second).await;
    assert!(early.is_err(), "{early:?}");
    drop(first);
    assert!(second.await.ends_with("I am web"));
}

#[tokio::test]
async fn nothing_is_left_after_shutting_down() {
    let (fake, router) = two_instances().await;
    fake.awake.send_replace(false);
    let mut held = connect(&router).await;
    held.write_all(b"GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n").await.unwrap();
    let mut idle = connect(&router).await;
    fake.wait_for_count(1).await;
    within(router.shut_down()).await;
    assert_eq!(*fake.counted.borrow(), 0);
    crate::fake::assert_reset(&mut held).await;
    crate::fake::assert_reset(&mut idle).await;
    HttpRouter::bind(fake.gate(), router.local_addr()).unwrap();
}

/// Pieces of heads and any bytes between them.
fn heads() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "GET ",
        "POST ",
        "CONNECT ",
        "* ",
        "/",
        "http://",
        "a.localhost",
        "[::1]",
        ":8099",
        " HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        "Host: ",
        "Connection: ",
        "Upgrade: ",
        "websocket",
        "close",
        "X-Aegis-Instance: ",
        "Transfer-Encoding: chunked",
        "Content-Length: ",
        "5",
        "Expect: 100-continue",
        "\r\n",
        "\r\n\r\n",
        "0\r\n",
    ]);
    let piece = prop_oneof![
        4 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

#[test]
fn no_bytes_make_it_panic() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (_fake, router) = runtime.block_on(two_instances());
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // Those of other tests are their own business.
        if info.location().is_some_and(|at| !at.file().contains("tests")) {
            PANICS.fetch_add(1, Ordering::SeqCst);
        }
        before(info);
    }));
    let mut runner = proptest::test_runner::TestRunner::default();
    let tested = runner.run(&heads(), |bytes| {
        runtime.block_on(async {
            let mut client = connect(&router).await;
            let _ = client.write_all(&bytes).await;
            let _ = client.shutdown().await;
            let _ = within(client.read_to_end(&mut Vec::new())).await;
        });
        prop_assert_eq!(PANICS.load(Ordering::SeqCst), 0);
        Ok(())
    });
    tested.unwrap();
    let answer = runtime.block_on(get(&router, "Host: web.localhost\r\n"));
    assert!(answer.ends_with("I am web"), "{answer}");
}
