//! Plain TCP.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_router::{Limits, OpenError, OpenPort, Ports, Refusal};
use aegis_types::PublicPort;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::{TcpListener, TcpStream};

use crate::fake::{Fake, Server, assert_reset, dial, guest, id, listen, serve, within};

/// A server that sends back what it gets, and ends when its client does.
async fn echo() -> Server {
    serve(|mut stream| async move {
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await
}

async fn exposed(server: Server) -> (Arc<Fake>, Ports, PublicPort) {
    exposed_with(server, Limits::default()).await
}

async fn exposed_with(server: Server, limits: Limits) -> (Arc<Fake>, Ports, PublicPort) {
    let fake = Fake::new();
    fake.serve(1, 80, server);
    let ports = Ports::new(fake.gate_with(limits));
    let public = ports.open(&id(1), guest(80), None).unwrap();
    (fake, ports, public)
}

async fn ask(mut client: TcpStream, question: &[u8]) -> Vec<u8> {
    client.write_all(question).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    within(client.read_to_end(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn a_connection_is_counted_before_the_wake_and_to_its_end() {
    let (fake, _ports, public) = exposed(echo().await).await;
    fake.awake.send_replace(false);
    let mut client = dial(public).await;
    fake.wait_for_count(1).await;
    fake.awake.send_replace(true);
    client.write_all(b"hello").await.unwrap();
    within(client.read_exact(&mut [0; 5])).await.unwrap();
    assert_eq!(fake.events(), ["counted", "woken", "opened"]);
    assert_eq!(*fake.counted.borrow(), 1);
    drop(client);
    fake.wait_for_count(0).await;
}

#[tokio::test]
async fn a_hundred_clients_at_once_are_held_and_answered() {
    let (fake, _ports, public) = exposed(echo().await).await;
    fake.awake.send_replace(false);
    let clients: Vec<_> = (0..100_u32)
        .map(|number| {
            tokio::spawn(async move {
                let question = vec![u8::try_from(number).unwrap(); 1000];
                assert_eq!(ask(dial(public).await, &question).await, question);
            })
        })
        .collect();
    fake.wait_for_count(100).await;
    fake.awake.send_replace(true);
    for client in clients {
        within(client).await.unwrap();
    }
    assert_eq!(fake.events().iter().filter(|event| **event == "woken").count(), 1);
    assert_eq!(fake.wakes.load(Ordering::SeqCst), 100);
    fake.wait_for_count(0).await;
}

#[tokio::test]
async fn a_port_is_open_on_both_loopback_addresses() {
    let (_fake, _ports, public) = exposed(echo().await).await;
    assert_eq!(ask(dial(public).await, b"four").await, b"four");
    // A host without IPv6 has only one.
    if TcpListener::bind("[::1]:0").await.is_ok() {
        let client = within(TcpStream::connect(("::1", public.get()))).await.unwrap();
        assert_eq!(ask(client, b"six").await, b"six");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_with_its_number() {
    let (_fake, ports, public) = exposed(echo().await).await;
    let of_ours = ports.open(&id(2), guest(80), Some(public)).unwrap_err();
    assert!(matches!(&of_ours, OpenError::Busy { port, by: Some(by) } if *port == public && *by == id(1)));
    assert!(of_ours.to_string().contains(&public.to_string()));
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(other) = TcpListener::bind(address).await else { continue };
        let taken = PublicPort::new(other.local_addr().unwrap().port()).unwrap();
        let error = ports.open(&id(2), guest(80), Some(taken)).unwrap_err();
        assert!(matches!(error, OpenError::Busy { port, by: None } if port == taken), "{address}: {error:?}");
    }
    assert_eq!(ports.list(), [OpenPort { instance: id(1), guest: guest(80), public }]);
}

#[tokio::test]
async fn opening_twice_opens_once() {
    let (_fake, ports, public) = exposed(echo().await).await;
    assert_eq!(ports.open(&id(1), guest(80), None).unwrap(), public);
    assert_eq!(ports.open(&id(1), guest(80), Some(public)).unwrap(), public);
    let other = PublicPort::new(if public.get() == 1 { 2 } else { 1 }).unwrap();
    let error = ports.open(&id(1), guest(80), Some(other)).unwrap_err();
    assert!(matches!(error, OpenError::Elsewhere { public: open, .. } if open == public));
    assert_eq!(ports.list().len(), 1);
}

#[tokio::test]
async fn a_closed_port_can_be_opened_at_once_and_its_connections_go_on() {
    let (_fake, ports, public) = exposed(echo().await).await;
    let mut client = dial(public).await;
    client.write_all(b"a").await.unwrap();
    assert_eq!(within(client.read_u8()).await.unwrap(), b'a');
    assert!(ports.close(&id(1), guest(80)).await);
    assert!(!ports.close(&id(1), guest(80)).await);
    assert!(TcpStream::connect(("127.0.0.1", public.get())).await.is_err());
    assert_eq!(ports.open(&id(1), guest(80), Some(public)).unwrap(), public);
    assert_eq!(ask(client, b"b").await, b"b");
}

#[tokio::test]
async fn closing_all_resets_even_connections_of_ports_that_were_closed() {
    let (fake, ports, public) = exposed(echo().await).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = dial(public).await;
        client.write_all(b"a").await.unwrap();
        within(client.read_u8()).await.unwrap();
        clients.push(client);
    }
    ports.close(&id(1), guest(80)).await;
    ports.close_all(&id(1)).await;
    for client in &mut clients {
        assert_reset(client).await;
    }
    fake.wait_for_count(0).await;
    assert_eq!(ports.list(), []);
}

#[tokio::test]
async fn each_direction_ends_alone() {
    let (listener, address) = listen().await;
    let (_fake, _ports, public) = exposed(Server::At(address)).await;
    // The client ends first.
    let mut client = dial(public).await;
    let (mut server, _) = within(listener.accept()).await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut text = String::new();
    within(server.read_to_string(&mut text)).await.unwrap();
    server.write_all(b"answer").await.unwrap();
    drop(server);
    within(client.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "questionanswer");
    // The server ends first.
    let mut client = dial(public).await;
    let (mut server, _) = within(listener.accept()).await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(within(client.read(&mut [0])).await.unwrap(), 0);
    client.write_all(b"late").await.unwrap();
    drop(client);
    text.clear();
    within(server.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "late");
}

#[tokio::test]
async fn more_than_may_be_held_are_reset() {
    for limits in
        [Limits { held_per_instance: 2, ..Limits::default() }, Limits { held: 2, ..Limits::default() }]
    {
        let (fake, _ports, public) = exposed_with(echo().await, limits).await;
        fake.awake.send_replace(false);
        let held = [dial(public).await, dial(public).await];
        fake.wait_for_count(2).await;
        assert_reset(&mut dial(public).await).await;
        fake.awake.send_replace(true);
        for client in held {
            assert_eq!(ask(client, b"x").await, b"x");
        }
        // The places are free again.
        assert_eq!(ask(dial(public).await, b"y").await, b"y");
    }
}

#[tokio::test]
async fn what_cannot_be_connected_is_reset() {
    let limits = Limits { hold: Duration::from_millis(50), ..Limits::default() };
    let (fake, ports, public) = exposed_with(Server::Refuses(Refusal::Disabled), limits).await;
    assert_reset(&mut dial(public).await).await;
    let nobody = ports.open(&id(1), guest(81), None).unwrap();
    assert_reset(&mut dial(nobody).await).await;
    // Too late.
    fake.awake.send_replace(false);
    assert_reset(&mut dial(public).await).await;
    fake.wait_for_count(0).await;
}

#[tokio::test]
async fn a_reset_of_either_side_reaches_the_other() {
    let (listener, address) = listen().await;
    let (_fake, _ports, public) = exposed(Server::At(address)).await;
    let mut client = dial(public).await;
    let (server, _) = within(listener.accept()).await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    assert_reset(&mut client).await;
    // A cut, not the client's end, is what the other way has: the pipe is closed in both directions.
    let (near, mut far) = duplex(1024);
    let (_fake, _ports, public) = exposed(Server::Pipe(Arc::new(Some(near).into()))).await;
    let mut client = dial(public).await;
    client.write_all(b"x").await.unwrap();
    within(far.read_u8()).await.unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(within(far.read(&mut [0])).await.unwrap(), 0);
    assert!(far.write_all(b"x").await.is_err());
}

#[tokio::test]
async fn connections_above_what_a_guest_link_carries_wait_for_their_turn() {
    let limits = Limits { open_per_instance: 3, ..Limits::default() };
    let (fake, _ports, public) = exposed_with(echo().await, limits).await;
    let clients: Vec<_> = (0..50)
        .map(|_| tokio::spawn(async move { assert_eq!(ask(dial(public).await, b"q").await, b"q") }))
        .collect();
    for client in clients {
        within(client).await.unwrap();
    }
    fake.wait_for_count(0).await;
}

#[tokio::test]
async fn a_vm_that_is_gone_resets_after_what_it_sent() {
    let (near, mut far) = duplex(1024);
    let (fake, _ports, public) = exposed(Server::Pipe(Arc::new(Some(near).into()))).await;
    let mut client = dial(public).await;
    client.write_all(b"x").await.unwrap();
    within(far.read_u8()).await.unwrap();
    far.write_all(b"last words").await.unwrap();
    fake.gone.send_replace(true);
    let mut text = [0; 10];
    within(client.read_exact(&mut text)).await.unwrap();
    assert_eq!(&text, b"last words");
    assert_reset(&mut client).await;
    fake.wait_for_count(0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_makes_the_server_wait() {
    let (near, mut far) = duplex(1024);
    let (_fake, _ports, public) = exposed(Server::Pipe(Arc::new(Some(near).into()))).await;
    let mut client = dial(public).await;
    client.write_all(b"x").await.unwrap();
    within(far.read_u8()).await.unwrap();
    // Far more than the kernel keeps for the two sockets.
    const ENOUGH: usize = 64 << 20;
    let mut taken = 0;
    while taken < ENOUGH {
        match tokio::time::timeout(Duration::from_secs(1), far.write(&[0; 64 * 1024])).await {
            Ok(count) => taken += count.unwrap(),
            Err(_) => break,
        }
    }
    assert!(taken < ENOUGH, "the relay takes whatever it gets");
    drop(far);
    let mut received = Vec::new();
    within(client.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received.len(), taken);
}

#[tokio::test]
async fn nothing_is_left_after_shutting_down() {
    let (fake, ports, public) = exposed(echo().await).await;
    let mut served = dial(public).await;
    served.write_all(b"a").await.unwrap();
    within(served.read_u8()).await.unwrap();
    fake.awake.send_replace(false);
    let mut held = dial(public).await;
    fake.wait_for_count(2).await;
    within(ports.shut_down()).await;
    assert_eq!(*fake.counted.borrow(), 0);
    assert_reset(&mut served).await;
    assert_reset(&mut held).await;
    assert!(matches!(ports.open(&id(1), guest(80), None), Err(OpenError::ShutDown)));
    // The socket is gone with the task.
    let again = Ports::new(fake.gate());
    assert_eq!(again.open(&id(1), guest(80), Some(public)).unwrap(), public);
}
