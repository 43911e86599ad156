//! Bytes arrive whole, in order and with their end, and never pile up.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use super::guest::MAC;
use super::world::World;
use crate::address::GUEST;
use crate::packet;

/// Bytes that do not repeat soon.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(length).collect()
}

fn hash(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

#[tokio::test]
async fn a_download_and_an_upload_arrive_as_they_were() {
    let mut world = World::new(&[]);
    let listener = world.listener("1.2.3.4:80").await;
    let data = noise(4_000_000);
    let sent = data.clone();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        World::read_all(stream).await.unwrap()
    });
    let handle = world.guest.connect_to("1.2.3.4", 80).await.unwrap();
    let received = world.guest.receive(handle, data.len()).await;
    assert_eq!(hash(&received), hash(&data));
    assert!(world.guest.end(handle).await, "the end of the server arrives as one");
    // The other direction goes on after it.
    world.guest.send(handle, &data).await;
    world.guest.close(handle);
    let mut server = server;
    let uploaded = loop {
        tokio::select! {
            uploaded = &mut server => break uploaded.unwrap(),
            () = world.guest.until("time", |_, _| Some(())) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    assert_eq!(hash(&uploaded), hash(&data));
}

#[tokio::test]
async fn two_hundred_connections_at_once_each_get_their_own_bytes() {
    let mut world = World::new(&[]);
    world.echo_server("1.2.3.4:7").await;
    let to = "1.2.3.4:7".parse().unwrap();
    let handles: Vec<_> = (0..200).map(|_| world.guest.dial(to)).collect();
    for handle in &handles {
        assert!(world.guest.outcome(*handle).await);
    }
    for (n, handle) in handles.iter().enumerate() {
        world.guest.send(*handle, format!("hello {n:04}").as_bytes()).await;
    }
    for (n, handle) in handles.iter().enumerate() {
        assert_eq!(world.guest.receive(*handle, 10).await, format!("hello {n:04}").as_bytes());
        world.guest.close(*handle);
    }
    for handle in handles {
        assert!(world.guest.end(handle).await);
    }
}

#[tokio::test]
async fn what_nobody_reads_does_not_pile_up() {
    let mut world = World::new(&[]);
    let listener = world.listener("1.2.3.4:80").await;
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Reads nothing, and writes what is taken.
        while let Ok(more) = stream.write(&[7; 64 * 1024]).await {
            count.fetch_add(more, Ordering::Relaxed);
        }
    });
    let handle = world.guest.connect_to("1.2.3.4", 80).await.unwrap();
    let mut pushed = 0;
    let mut still = 0;
    let mut before = (0, 0);
    while still < 200 {
        world
            .guest
            .until("turn", |sockets, _| {
                let socket = sockets.get_mut::<smoltcp::socket::tcp::Socket<'_>>(handle);
                if socket.can_send() {
                    pushed += socket.send_slice(&[7; 64 * 1024]).unwrap();
                }
                Some(())
            })
            .await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let now = (pushed, written.load(Ordering::Relaxed));
        still = if now == before { still + 1 } else { 0 };
        before = now;
    }
    // The buffers of both kernels are in it as well.
    assert!(pushed < 16 << 20 && before.1 < 16 << 20, "{before:?}");
}

#[tokio::test]
async fn a_connection_that_the_host_loses_is_reset() {
    let mut world = World::new(&[]);
    let listener = world.listener("1.2.3.4:80").await;
    let handle = world.guest.connect_to("1.2.3.4", 80).await.unwrap();
    world.guest.send(handle, b"x").await;
    let (stream, _) = listener.accept().await.unwrap();
    // What was not read makes the kernel send a reset.
    assert_eq!(stream.peek(&mut [0]).await.unwrap(), 1);
    drop(stream);
    assert!(!world.guest.end(handle).await);
}

#[tokio::test]
async fn a_reset_of_the_guest_reaches_the_host_and_the_port_can_be_used_again() {
    let mut world = World::new(&[]);
    let listener = world.listener("1.2.3.4:80").await;
    let handle = world.guest.connect_to("1.2.3.4", 80).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    world.guest.sockets.get_mut::<smoltcp::socket::tcp::Socket<'_>>(handle).abort();
    let mut byte = [0];
    loop {
        tokio::select! {
            read = stream.read(&mut byte) => {
                assert!(matches!(read, Ok(0) | Err(_)));
                break;
            }
            () = world.guest.until("time", |_, _| Some(())) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    assert!(world.guest.connect_to("1.2.3.4", 80).await.is_some());
}

#[tokio::test]
async fn nothing_moves_while_the_guest_is_paused_and_nothing_is_lost() {
    let mut world = World::new(&[]);
    let listener = world.listener("1.2.3.4:80").await;
    let handle = world.guest.connect_to("1.2.3.4", 80).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    world.control.set_paused(true);
    stream.write_all(&[7; 100_000]).await.unwrap();
    for _ in 0..100 {
        world
            .guest
            .until("turn", |sockets, _| {
                let socket = sockets.get_mut::<smoltcp::socket::tcp::Socket<'_>>(handle);
                // What the network did before it heard of it may arrive.
                assert!(socket.recv_queue() < 100_000);
                Some(())
            })
            .await;
    }
    world.control.set_paused(false);
    assert_eq!(world.guest.receive(handle, 100_000).await, [7; 100_000]);
}

#[tokio::test]
async fn connections_of_before_a_rest_are_reset() {
    let mut world = World::new(&[]);
    world.echo_server("1.2.3.4:7").await;
    let handle = world.guest.connect_to("1.2.3.4", 7).await.unwrap();
    world.guest.send(handle, b"x").await;
    world.guest.receive(handle, 1).await;
    world.rest().await;
    assert!(!world.guest.end(handle).await);
    assert!(world.guest.connect_to("1.2.3.4", 7).await.is_some());
    // Whoever was not saved is not taken for it.
    assert!(std::fs::read_dir(world.log.path()).unwrap().flatten().all(|f| f.file_name() == crate::LOG_FILE));
}

#[tokio::test]
async fn datagrams_go_there_and_back() {
    let mut world = World::new(&[]);
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    world.internet.put("1.2.3.4:5000", server.local_addr().unwrap());
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((length, from)) = server.recv_from(&mut buffer).await {
            let _ = server.send_to(&buffer[..length], from).await;
        }
    });
    world.guest.seen = Some(Vec::new());
    let (here, there) = (SocketAddrV4::new(GUEST, 4000), "1.2.3.4:5000".parse().unwrap());
    for length in [0, 1, 1400, 60_000] {
        let payload = noise(length);
        let frame = sent(packet::udp(MAC, here, there, &payload).unwrap(), there);
        world.guest.send_frame(&frame).await;
        let expected = packet::udp(MAC, there, here, &payload).unwrap();
        world.guest.until("answer", |_, seen| seen.as_ref().unwrap().contains(&expected).then_some(())).await;
    }
    assert_eq!(world.internet.dialed.lock().unwrap().len(), 1, "one socket for all");
}

/// The frame as the guest sends it.
pub(super) fn sent(mut frame: Vec<u8>, to: SocketAddrV4) -> Vec<u8> {
    let mut ip = smoltcp::wire::Ipv4Packet::new_unchecked(&mut frame[14..]);
    ip.set_src_addr(GUEST);
    ip.set_dst_addr(*to.ip());
    frame[6..12].copy_from_slice(&MAC.0);
    frame
}

#[tokio::test]
async fn a_port_of_the_host_is_reached_only_if_it_was_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut world = World::with(&["allow:a.example"], &[port], &[]);
    let handle = world.guest.connect_to("192.168.127.1", port).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"hi").await.unwrap();
    assert_eq!(world.guest.receive(handle, 2).await, b"hi");
    assert!(world.guest.connect_to("192.168.127.1", port ^ 1).await.is_none());
    assert!(world.reason(&format!("192.168.127.1:{}", port ^ 1)).contains("network of the guest"));
}
