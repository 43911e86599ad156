//! Both ends of the link over an in-memory pipe.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use aegis_link::{LinkEnd, LinkError, Stream, guest, host, rpc};
use aegis_proto::GENERATION;
use aegis_proto::control;
use aegis_proto::hello::{Hello, Welcome};
use aegis_proto::jsonrpc::{METHOD_NOT_FOUND, RpcError};
use aegis_proto::service::Service;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

const PATIENCE: Duration = Duration::from_secs(20);

fn hello() -> Hello {
    Hello {
        generation: GENERATION,
        nonce: "n1".to_owned(),
        time_unix_ns: 1,
        seed: "ab".repeat(64),
        hostname: "web".to_owned(),
        machine_id: "0".repeat(32),
        template: false,
        network: None,
        mounts: Vec::new(),
        disk_bytes: None,
    }
}

fn welcome(nonce: &str, generation: u32) -> Welcome {
    Welcome { generation, nonce: nonce.to_owned(), version: "test".to_owned(), boottime_ns: 5 }
}

struct Control;

#[async_trait::async_trait]
impl rpc::Handler for Control {
    async fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        match method {
            control::PARK => Ok(Value::Null),
            "echo" => Ok(params),
            "huge" => Ok(json!("x".repeat(2 << 20))),
            _ => {
                Err(RpcError { code: METHOD_NOT_FOUND, message: format!("no method `{method}`"), data: None })
            }
        }
    }
}

/// Serves echo on `Exec` and JSON-RPC on `Control` until the link ends.
async fn serve(mut link: guest::GuestLink) {
    while let Some(incoming) = link.accept().await {
        tokio::spawn(async move {
            match incoming.accept().await {
                Ok(Some((Service::Exec, mut stream))) => {
                    let (mut reader, mut writer) = tokio::io::split(&mut stream);
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    let _ = writer.shutdown().await;
                }
                Ok(Some((Service::Control, stream))) => {
                    let _ = rpc::serve(stream, Arc::new(Control), None).await;
                }
                _ => {}
            }
        });
    }
    link.ended().await;
}

async fn guest_on(mut carrier: DuplexStream) {
    let hello = guest::receive_hello(&mut carrier).await.unwrap();
    let link = guest::GuestLink::welcome(carrier, welcome(&hello.nonce, GENERATION)).await.unwrap();
    serve(link).await;
}

async fn linked() -> host::HostLink {
    let (ours, theirs) = duplex(64 * 1024);
    tokio::spawn(guest_on(theirs));
    host::greet(ours, hello()).await.unwrap().0
}

async fn echo(mut stream: Stream, size: usize) {
    let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    let expected = sent.clone();
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let write = async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut received));
    read.unwrap();
    assert!(received == expected, "{} of {size} bytes", received.len());
}

#[tokio::test]
async fn many_streams_carry_their_own_bytes_and_half_close() {
    let link = linked().await;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..100 {
        let stream = link.open(Service::Exec).await.unwrap();
        tasks.spawn(echo(stream, i * 1000));
    }
    tasks.spawn(echo(link.open(Service::Exec).await.unwrap(), 3_000_000));
    tokio::time::timeout(PATIENCE, tasks.join_all()).await.unwrap();
}

#[tokio::test]
async fn streams_come_and_go_a_thousand_times() {
    let link = linked().await;
    for _ in 0..1000 {
        echo(link.open(Service::Exec).await.unwrap(), 10).await;
    }
}

#[tokio::test]
async fn calls_run_concurrently_and_answers_find_their_callers() {
    let link = linked().await;
    let (client, _) = rpc::Client::new(link.open(Service::Control).await.unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..200u64 {
        let client = client.clone();
        tasks.spawn(async move { assert_eq!(client.call::<_, u64>("echo", &i).await.unwrap(), i) });
    }
    tasks.join_all().await;
    assert!(
        matches!(client.call::<_, Value>("nope", &()).await, Err(rpc::CallError::Rpc(e)) if e.code == METHOD_NOT_FOUND)
    );
    // Too large in either direction: an error for this call, and the stream goes on.
    assert!(matches!(
        client.call::<_, Value>("echo", &"x".repeat(2 << 20)).await,
        Err(rpc::CallError::TooLarge(_))
    ));
    assert!(matches!(client.call::<_, Value>("huge", &()).await, Err(rpc::CallError::Rpc(_))));
    assert_eq!(client.call::<_, u64>("echo", &1u64).await.unwrap(), 1);
}

#[tokio::test]
async fn stale_bytes_before_the_answer_are_skipped() {
    let (ours, mut theirs) = duplex(64 * 1024);
    tokio::spawn(async move {
        theirs.write_all(b"\x00\xff{half a line").await.unwrap();
        theirs.write_all(&vec![b'x'; 10_000]).await.unwrap();
        theirs.write_all(b"\n{\"aegis\":\"parked\"}\n").await.unwrap();
        guest_on(theirs).await;
    });
    let (link, welcome) = host::greet(ours, hello()).await.unwrap();
    assert_eq!(welcome.version, "test");
    echo(link.open(Service::Exec).await.unwrap(), 10).await;
}

#[tokio::test]
async fn a_guest_that_only_talks_is_given_up() {
    let (ours, mut theirs) = duplex(64 * 1024);
    tokio::spawn(async move { while theirs.write_all(&[b'x'; 4096]).await.is_ok() {} });
    let result = tokio::time::timeout(PATIENCE, host::greet(ours, hello())).await.unwrap();
    assert!(matches!(result, Err(LinkError::Handshake(_))));
}

#[tokio::test]
async fn a_guest_cannot_raise_the_generation() {
    let (ours, mut theirs) = duplex(64 * 1024);
    tokio::spawn(async move {
        let hello = guest::receive_hello(&mut theirs).await.unwrap();
        let link = guest::GuestLink::welcome(theirs, welcome(&hello.nonce, GENERATION + 1)).await.unwrap();
        serve(link).await;
    });
    assert!(matches!(host::greet(ours, hello()).await, Err(LinkError::Handshake(_))));
}

#[tokio::test]
async fn garbage_instead_of_frames_is_a_violation() {
    let (ours, mut theirs) = duplex(64 * 1024);
    let guest = tokio::spawn(async move {
        let hello = guest::receive_hello(&mut theirs).await.unwrap();
        let answer = aegis_proto::hello::Greeting::Welcome(welcome(&hello.nonce, GENERATION));
        theirs.write_all(&answer.encode()).await.unwrap();
        theirs.write_all(&[0xff; 4096]).await.unwrap();
        theirs
    });
    let (link, _) = host::greet(ours, hello()).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, link.ended()).await.unwrap();
    assert!(matches!(end, LinkEnd::Violation(_)), "{end:?}");
    assert!(matches!(link.open(Service::Exec).await, Err(LinkError::Ended(_))));
    drop(guest);
}

#[tokio::test]
async fn a_carrier_that_goes_away_is_no_violation() {
    let (ours, theirs) = duplex(64 * 1024);
    let guest = tokio::spawn(guest_on(theirs));
    let (link, _) = host::greet(ours, hello()).await.unwrap();
    echo(link.open(Service::Exec).await.unwrap(), 10).await;
    guest.abort();
    link.close();
    assert_eq!(tokio::time::timeout(PATIENCE, link.ended()).await.unwrap(), LinkEnd::Closed);
}

#[tokio::test]
async fn park_hands_the_same_carrier_over_to_the_next_session() {
    let (ours, theirs) = duplex(64 * 1024);
    let shared = Shared(Arc::new(std::sync::Mutex::new(theirs)));
    let again = shared.clone();
    tokio::spawn(async move {
        let mut carrier = shared;
        let hello = guest::receive_hello(&mut carrier).await.unwrap();
        serve(guest::GuestLink::welcome(carrier, welcome(&hello.nonce, GENERATION)).await.unwrap()).await;
        let mut carrier = again;
        guest::send_parked(&mut carrier).await.unwrap();
        std::future::pending::<()>().await;
    });
    let (link, _) = host::greet(ours, hello()).await.unwrap();
    tokio::time::timeout(PATIENCE, link.park()).await.unwrap().unwrap();
}

/// A carrier that outlives its sessions, as a virtio port does.
#[derive(Clone)]
struct Shared(Arc<std::sync::Mutex<DuplexStream>>);

mod shared_io {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    impl AsyncRead for super::Shared {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            b: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut *self.0.lock().unwrap()).poll_read(cx, b)
        }
    }

    impl AsyncWrite for super::Shared {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, b: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut *self.0.lock().unwrap()).poll_write(cx, b)
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut *self.0.lock().unwrap()).poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
}

#[tokio::test]
async fn whoever_closes_the_link_leaves_nobody_waiting_on_its_streams() {
    let link = linked().await;
    let (mut reader, _writer) = tokio::io::split(link.open(Service::Exec).await.unwrap());
    let reading = tokio::spawn(async move { reader.read_to_end(&mut Vec::new()).await });
    let (_reader, mut writer) = tokio::io::split(link.open(Service::Exec).await.unwrap());
    // Nobody reads what the guest sends back, so it stops to read what we send.
    let writing = tokio::spawn(async move { while writer.write_all(&[0; 64 * 1024]).await.is_ok() {} });
    tokio::task::yield_now().await;
    link.close();
    let both = async { (reading.await.unwrap(), writing.await.unwrap()) };
    let (read, ()) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    // An error when the reader had to say something to the peer.
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}
