//! What is carried: bodies, upgrades, and what happens when a side goes away.

use std::sync::Arc;

use aegis_router::HttpRouter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::fake::{Fake, Server, assert_reset, listen, within};
use crate::http::{bind, connect, read_head};

/// A router with one instance, whose server is the test.
async fn one_instance() -> (Arc<Fake>, HttpRouter, TcpListener) {
    let fake = Fake::new();
    let (listener, address) = listen().await;
    fake.add("web", 1, Some(80), true);
    fake.serve(1, 80, Server::At(address));
    let router = bind(&fake);
    (fake, router, listener)
}

/// Sends a request; both connections, and the head as the server has it, its lines sorted.
async fn request(
    router: &HttpRouter,
    server: &TcpListener,
    text: &str,
) -> (TcpStream, TcpStream, Vec<String>) {
    let mut client = connect(router).await;
    client.write_all(text.as_bytes()).await.unwrap();
    let (mut server, _) = within(server.accept()).await.unwrap();
    let head = read_head(&mut server).await;
    let mut lines: Vec<String> = head.trim_end().lines().map(str::to_owned).collect();
    lines[1..].sort();
    (client, server, lines)
}

async fn expect(stream: &mut TcpStream, text: &str) {
    let mut received = vec![0; text.len()];
    within(stream.read_exact(&mut received)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&received), text);
}

#[tokio::test]
async fn the_server_sees_the_request_and_who_sent_it() {
    let (_fake, router, listener) = one_instance().await;
    let text = "GET /a?b=c HTTP/1.1\r\nHost: web.localhost:8099\r\nAccept: */*\r\nConnection: close, x-one\r\n\
                X-One: 1\r\nX-Aegis-Instance: web\r\n\r\n";
    let (mut client, mut server, head) = request(&router, &listener, text).await;
    assert_eq!(
        head,
        [
            "GET /a?b=c HTTP/1.1",
            "accept: */*",
            "host: web.localhost:8099",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: web.localhost:8099",
            "x-forwarded-proto: http",
        ]
    );
    let answer = "HTTP/1.0 200 Fine\r\nConnection: x-two\r\nX-Two: 2\r\nX-Three: 3\r\n\r\nall";
    server.write_all(answer.as_bytes()).await.unwrap();
    drop(server);
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 Fine\r\n"), "{answer}");
    assert!(answer.contains("x-three: 3\r\n") && !answer.contains("x-two"), "{answer}");
    assert!(answer.ends_with("\r\n3\r\nall\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn bodies_are_streams_in_both_directions() {
    let (fake, router, listener) = one_instance().await;
    let text = "POST / HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n";
    let (mut client, mut server, _) = request(&router, &listener, text).await;
    expect(&mut server, "3\r\none\r\n").await;
    server
        .write_all(b"HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n1!\r\n")
        .await
        .unwrap();
    assert!(read_head(&mut client).await.contains("trailer: x-sum\r\n"));
    expect(&mut client, "2\r\n1!\r\n").await;
    // The request is not over, and goes on.
    client.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    expect(&mut server, "3\r\ntwo\r\n0\r\n\r\n").await;
    server.write_all(b"2\r\n2!\r\n0\r\nx-sum: 4\r\n\r\n").await.unwrap();
    expect(&mut client, "2\r\n2!\r\n0\r\nx-sum: 4\r\n\r\n").await;
    // The server sees an end, not a cut.
    assert_eq!(within(server.read(&mut [0])).await.unwrap(), 0);
    drop(server);
    fake.wait_for_count(0).await;
}

#[tokio::test]
async fn a_client_that_expects_to_be_asked_is_asked() {
    let (_fake, router, listener) = one_instance().await;
    let text = "PUT / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let (mut client, mut server, head) = request(&router, &listener, text).await;
    assert!(head.contains(&"content-length: 4".to_owned()), "{head:?}");
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 100 "));
    client.write_all(b"body").await.unwrap();
    expect(&mut server, "body").await;
    server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 204 "));
}

#[tokio::test]
async fn a_websocket_is_relayed() {
    let (fake, router, listener) = one_instance().await;
    let text = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Key: k\r\n\r\n";
    let (mut client, mut server, head) = request(&router, &listener, text).await;
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-key: k"] {
        assert!(head.contains(&line.to_owned()), "{head:?}");
    }
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: a\r\n\r\nfirst";
    server.write_all(answer.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    for line in ["connection: upgrade\r\n", "upgrade: websocket\r\n", "sec-websocket-accept: a\r\n"] {
        assert!(head.contains(line), "{head}");
    }
    expect(&mut client, "first").await;
    client.write_all(b"ping").await.unwrap();
    expect(&mut server, "ping").await;
    server.write_all(b"pong").await.unwrap();
    expect(&mut client, "pong").await;
    assert_eq!(*fake.counted.borrow(), 1);
    client.shutdown().await.unwrap();
    assert_eq!(within(server.read(&mut [0])).await.unwrap(), 0);
    server.write_all(b"bye").await.unwrap();
    drop(server);
    let mut rest = String::new();
    within(client.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "bye");
    fake.wait_for_count(0).await;
}

#[tokio::test]
async fn a_websocket_is_reset_with_its_vm_or_its_router() {
    let text = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    let (fake, router, listener) = one_instance().await;
    let (mut client, mut server, _) = request(&router, &listener, text).await;
    server.write_all(switch).await.unwrap();
    read_head(&mut client).await;
    fake.gone.send_replace(true);
    assert_reset(&mut client).await;
    fake.wait_for_count(0).await;

    fake.gone.send_replace(false);
    let (mut client, mut server, _) = request(&router, &listener, text).await;
    server.write_all(switch).await.unwrap();
    read_head(&mut client).await;
    within(router.shut_down()).await;
    assert_eq!(*fake.counted.borrow(), 0);
    let ended = within(client.read(&mut [0])).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn an_upgrade_that_is_declined_is_an_answer() {
    let (fake, router, listener) = one_instance().await;
    let text = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    let (mut client, mut server, _) = request(&router, &listener, text).await;
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
    expect(&mut client, "no").await;
    fake.wait_for_count(0).await;
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_an_error() {
    let (_fake, router, listener) = one_instance().await;
    let (mut client, mut server, _) =
        request(&router, &listener, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    server
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        .await
        .unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 50"));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_request_in_the_guest() {
    let (fake, router, listener) = one_instance().await;
    let text = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    // Before the answer.
    let (client, mut server, _) = request(&router, &listener, text).await;
    drop(client);
    let ended = within(server.read(&mut [0])).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    fake.wait_for_count(0).await;
    // In the middle of it.
    let (mut client, mut server, _) = request(&router, &listener, text).await;
    server.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await.unwrap();
    read_head(&mut client).await;
    drop(client);
    let ended = within(server.read(&mut [0])).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    fake.wait_for_count(0).await;
    // While its instance wakes.
    fake.awake.send_replace(false);
    let mut client = connect(&router).await;
    client.write_all(text.as_bytes()).await.unwrap();
    fake.wait_for_count(1).await;
    drop(client);
    fake.wait_for_count(0).await;
}

#[tokio::test]
async fn an_answer_that_is_cut_off_does_not_look_whole() {
    let (fake, router, listener) = one_instance().await;
    // An old client takes the end of the connection for the end of the body.
    let text = "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n";
    let half = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf \r\n";
    let (mut client, mut server, _) = request(&router, &listener, text).await;
    server.write_all(half).await.unwrap();
    read_head(&mut client).await;
    expect(&mut client, "half ").await;
    server.set_zero_linger().unwrap();
    drop(server);
    assert_reset(&mut client).await;
    // The same when the VM is gone and its connection says nothing.
    let (mut client, mut server, _) = request(&router, &listener, text).await;
    server.write_all(half).await.unwrap();
    read_head(&mut client).await;
    expect(&mut client, "half ").await;
    fake.gone.send_replace(true);
    assert_reset(&mut client).await;
    fake.wait_for_count(0).await;
}

#[tokio::test]
async fn a_vm_that_is_gone_before_the_answer_is_worth_another_try() {
    let (fake, router, listener) = one_instance().await;
    let text = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let (mut client, _server, _) = request(&router, &listener, text).await;
    fake.gone.send_replace(true);
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: 3\r\n"), "{head}");
}
