//! What is denied is refused at once, is logged, and never leaves.

use std::net::{Ipv4Addr, SocketAddrV4};

use aegis_types::NetPolicy;
use proptest::prelude::*;
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet};

use super::guest::MAC;
use super::streams::sent;
use super::world::World;
use crate::address::GUEST;
use crate::packet;

#[tokio::test]
async fn every_denied_class_is_refused_and_logged() {
    let mut world = World::new(&[]);
    world.internet.own.lock().unwrap().insert(Ipv4Addr::new(9, 9, 9, 9));
    for (address, reason) in [
        ("10.1.2.3", "private address"),
        ("172.16.0.1", "private address"),
        ("192.168.1.1", "private address"),
        ("192.168.127.77", "network of the guest itself"),
        ("192.168.127.1", "network of the guest itself"),
        ("169.254.169.254", "metadata service"),
        ("169.254.7.7", "link-local address"),
        ("100.64.0.1", "shared address (CGNAT)"),
        ("127.0.0.1", "loopback address"),
        ("0.1.2.3", "unspecified address"),
        ("198.18.0.1", "benchmarking address"),
        ("203.0.113.9", "documentation address"),
        ("240.0.0.1", "reserved address"),
        ("9.9.9.9", "address of the host"),
    ] {
        assert!(world.guest.connect_to(address, 80).await.is_none(), "{address}");
        assert_eq!(world.reason(&format!("{address}:80")), reason);
    }
    assert!(world.internet.dialed.lock().unwrap().is_empty(), "nothing was tried");
}

#[tokio::test]
async fn datagrams_and_echoes_that_are_denied_are_answered_with_an_error() {
    let mut world = World::new(&[]);
    let here = SocketAddrV4::new(GUEST, 4000);
    for (to, kind) in [("10.0.0.1:53", "udp"), ("224.0.0.251:5353", "udp"), ("255.255.255.255:67", "udp")] {
        let there: SocketAddrV4 = to.parse().unwrap();
        world.guest.seen = Some(Vec::new());
        let frame = sent(packet::udp(MAC, here, there, b"x").unwrap(), there);
        world.guest.send_frame(&frame).await;
        world
            .guest
            .until("ICMP error", |_, seen| {
                seen.as_ref().unwrap().iter().find_map(|frame| {
                    let icmp = Icmpv4Packet::new_checked(frame.get(34..)?).ok()?;
                    (icmp.msg_type() == Icmpv4Message::DstUnreachable && icmp.msg_code() == 13).then_some(())
                })
            })
            .await;
        assert!(!world.decision(to).allowed && world.decision(to).protocol == kind);
    }
    assert!(world.internet.dialed.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_scan_of_private_networks_sees_nothing_and_is_in_nobodys_way() {
    let mut world = World::new(&[]);
    world.echo_server("1.2.3.4:7").await;
    let talking = world.guest.connect_to("1.2.3.4", 7).await.unwrap();
    for round in 0..8 {
        let scanned: Vec<_> = (0..128_u8)
            .map(|n| world.guest.dial(SocketAddrV4::new(Ipv4Addr::new(10, round, n, 1), 22)))
            .collect();
        world.guest.send(talking, b"still here").await;
        for handle in scanned {
            assert!(!world.guest.outcome(handle).await);
            world.guest.sockets.remove(handle);
        }
        assert_eq!(world.guest.receive(talking, 10).await, b"still here");
    }
    assert_eq!(world.internet.dialed.lock().unwrap().len(), 1);
    assert!(world.logged().len() < 1024, "a flood is not logged line by line");
}

#[tokio::test]
async fn connections_that_are_never_answered_are_bounded() {
    let mut world = World::new(&[]);
    let silent: SocketAddrV4 = "1.2.3.4:80".parse().unwrap();
    world.internet.silent.lock().unwrap().insert(silent.into());
    let handles: Vec<_> = (0..400).map(|_| world.guest.dial(silent)).collect();
    world
        .guest
        .until("first wave", |_, _| (world.internet.dialed.lock().unwrap().len() >= 128).then_some(()))
        .await;
    for _ in 0..50 {
        world.guest.until("turn", |_, _| Some(())).await;
    }
    assert_eq!(world.internet.dialed.lock().unwrap().len(), 128);
    assert!(handles.iter().all(|handle| {
        let socket = world.guest.sockets.get::<smoltcp::socket::tcp::Socket<'_>>(*handle);
        socket.state() == smoltcp::socket::tcp::State::SynSent
    }));
}

#[tokio::test]
async fn what_the_host_cannot_reach_is_refused() {
    let mut world = World::new(&[]);
    assert!(world.guest.connect_to("1.2.3.4", 81).await.is_none());
    assert_eq!(world.reason("1.2.3.4:81"), "allowed");
}

#[tokio::test]
async fn a_new_policy_counts_at_once_also_for_what_is_open() {
    let mut world = World::new(&[]);
    world.echo_server("1.2.3.4:7").await;
    world.echo_server("5.6.7.8:7").await;
    let (one, two) = (
        world.guest.connect_to("1.2.3.4", 7).await.unwrap(),
        world.guest.connect_to("5.6.7.8", 7).await.unwrap(),
    );
    world.control.set_policy(NetPolicy::parse(&["deny:1.2.3.4"]).unwrap());
    assert!(!world.guest.end(one).await, "reset");
    world.guest.send(two, b"on").await;
    assert_eq!(world.guest.receive(two, 2).await, b"on");
    assert!(world.guest.connect_to("1.2.3.4", 7).await.is_none());
    world.control.set_policy(NetPolicy::default());
    assert!(world.guest.connect_to("1.2.3.4", 7).await.is_some());
}

#[tokio::test]
async fn a_guest_without_a_network_hears_nothing() {
    let mut world = World::new(&["none"]);
    world.guest.dial("1.2.3.4:80".parse().unwrap());
    world.guest.seen = Some(Vec::new());
    for _ in 0..100 {
        world.guest.until("turn", |_, _| Some(())).await;
    }
    assert_eq!(world.guest.seen, Some(Vec::new()));
    assert!(!world.running.is_finished());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_sequence_of_frames_ends_the_network(
        frames in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..120), 0..4_u8), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(&[]);
            for (bytes, kind) in frames {
                let there = SocketAddrV4::new(Ipv4Addr::new(1, 2, 3, 4), 80);
                let mut frame = sent(packet::udp(MAC, SocketAddrV4::new(GUEST, 1), there, &bytes).unwrap(), there);
                match kind {
                    0 => frame = bytes,
                    // TCP and ICMP with whatever is in them.
                    1 => frame[23] = 6,
                    2 => frame[23] = 1,
                    _ => {}
                }
                world.guest.send_frame(&frame).await;
            }
            world.echo_server("1.2.3.4:7").await;
            let handle = world.guest.connect_to("1.2.3.4", 7).await.unwrap();
            world.guest.send(handle, b"alive").await;
            assert_eq!(world.guest.receive(handle, 5).await, b"alive");
        });
    }
}
