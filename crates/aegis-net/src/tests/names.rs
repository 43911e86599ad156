//! Names: resolving them, and what they allow.

use std::net::{Ipv4Addr, SocketAddrV4};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

use super::guest::MAC;
use super::streams::sent;
use super::world::World;
use crate::address::{GATEWAY, GUEST};
use crate::dns::{address_query, addresses};
use crate::packet::{self, Packet};
use crate::said::tests::client_hello;

const SERVER: &str = "8.8.4.4:53";

/// A world with a name server that knows `evil.example` and answers every other name with 1.2.3.4.
async fn world(options: &[&str]) -> World {
    let world = World::with(options, &[], &[SERVER]);
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    world.internet.put(SERVER, server.local_addr().unwrap());
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, from)) = server.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let name = query.queries[0].name().clone();
            let evil = name.to_ascii().starts_with("evil");
            let address = if evil { Ipv4Addr::new(10, 0, 0, 1) } else { Ipv4Addr::new(1, 2, 3, 4) };
            let mut answer = Message::response(query.metadata.id, OpCode::Query);
            answer.add_queries(query.queries.clone());
            answer.add_answer(Record::from_rdata(name, 77, RData::A(A(address))));
            // First something that a stranger guessed.
            let mut guessed = answer.clone();
            guessed.metadata.id ^= 1;
            for message in [guessed, answer] {
                let _ = server.send_to(&message.to_vec().unwrap(), from).await;
            }
        }
    });
    world
}

async fn ask(world: &mut World, query: &[u8]) -> Vec<u8> {
    let (here, there) = (SocketAddrV4::new(GUEST, 4001), SocketAddrV4::new(GATEWAY, 53));
    world.guest.seen = Some(Vec::new());
    let frame = sent(packet::udp(MAC, here, there, query).unwrap(), there);
    world.guest.send_frame(&frame).await;
    let answer = world
        .guest
        .until("answer", |_, seen| {
            seen.as_ref().unwrap().iter().find_map(|frame| {
                let mut mirrored = frame.clone();
                smoltcp::wire::Ipv4Packet::new_unchecked(mirrored.get_mut(14..)?).set_src_addr(GUEST);
                match packet::look(&mirrored).0 {
                    Packet::Udp { from, payload, .. } if from.port() == 53 => Some(payload.to_vec()),
                    _ => None,
                }
            })
        })
        .await;
    assert_eq!(answer[..2], query[..2], "the identifier of the query");
    answer
}

async fn resolve(world: &mut World, name: &str) -> (ResponseCode, Vec<Ipv4Addr>) {
    addresses(&ask(world, &address_query(77, name)).await)
}

#[tokio::test]
async fn names_are_resolved_with_their_times_and_without_ipv6() {
    let mut world = world(&[]).await;
    let answer = ask(&mut world, &address_query(5, "A.Example.")).await;
    let message = Message::from_vec(&answer).unwrap();
    assert_eq!(message.answers[0].ttl, 77);
    assert_eq!(addresses(&answer).1, [Ipv4Addr::new(1, 2, 3, 4)]);
    assert!(world.decision("a.example").allowed);

    let mut query = Message::new(6, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii("a.example.").unwrap(), RecordType::AAAA));
    let answer = Message::from_vec(&ask(&mut world, &query.to_vec().unwrap()).await).unwrap();
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
}

#[tokio::test]
async fn the_gateway_has_a_name_when_it_has_ports() {
    let mut with = World::with(&[], &[80], &[]);
    assert_eq!(resolve(&mut with, "host.aegis.internal.").await, (ResponseCode::NoError, vec![GATEWAY]));
    let mut without = World::new(&[]);
    assert_eq!(resolve(&mut without, "host.aegis.internal.").await, (ResponseCode::NoError, vec![]));
    assert_eq!(
        resolve(&mut without, "a.example.").await.0,
        ResponseCode::ServFail,
        "there is no name server"
    );
}

#[tokio::test]
async fn names_that_are_not_allowed_are_not_resolved() {
    let mut world = world(&["allow:a.example", "deny:b.example"]).await;
    for name in ["c.example.", "b.example.", "x.a.example."] {
        assert_eq!(resolve(&mut world, name).await.0, ResponseCode::Refused, "{name}");
        assert!(!world.decision(name.trim_end_matches('.')).allowed);
    }
    assert!(world.internet.dialed.lock().unwrap().is_empty(), "no name leaves that is not allowed");
    assert_eq!(resolve(&mut world, "a.example.").await.0, ResponseCode::NoError);
}

#[tokio::test]
async fn a_name_that_means_something_private_is_of_no_use() {
    for options in [&[][..], &["allow:evil.example"]] {
        let mut world = world(options).await;
        assert_eq!(resolve(&mut world, "evil.example.").await, (ResponseCode::NoError, vec![]));
        assert_eq!(world.reason("evil.example"), "private address");
        assert!(world.guest.connect_to("10.0.0.1", 80).await.is_none());
        assert_eq!(world.reason("10.0.0.1:80"), "private address");
    }
    // Somebody who wants it so.
    let mut world = world(&["public", "allow:10.0.0.0/8:80"]).await;
    world.echo_server("10.0.0.1:80").await;
    assert_eq!(resolve(&mut world, "evil.example.").await.1, [Ipv4Addr::new(10, 0, 0, 1)]);
    assert!(world.guest.connect_to("10.0.0.1", 80).await.is_some());
    assert_eq!(world.decision("10.0.0.1:80").name.as_deref(), Some("evil.example"));
}

#[tokio::test]
async fn nobody_is_asked_for_the_names_of_private_addresses() {
    let mut world = world(&[]).await;
    for (name, code) in [
        ("1.0.0.10.in-addr.arpa.", ResponseCode::Refused),
        ("1.1.1.1.in-addr.arpa.", ResponseCode::NoError),
        ("300.1.1.1.in-addr.arpa.", ResponseCode::NoError),
    ] {
        assert_eq!(resolve(&mut world, name).await.0, code, "{name}");
    }
}

#[tokio::test]
async fn a_rule_by_name_allows_its_addresses_and_only_for_that_name() {
    let mut world = world(&["allow:a.example:443"]).await;
    world.echo_server("1.2.3.4:443").await;
    assert!(world.guest.connect_to("1.2.3.4", 443).await.is_none(), "nobody asked for the name");
    resolve(&mut world, "a.example.").await;
    assert!(world.guest.connect_to("1.2.3.4", 80).await.is_none(), "another port");

    let handle = world.guest.connect_to("1.2.3.4", 443).await.unwrap();
    let hello = client_hello("a.example");
    world.guest.send(handle, &hello[..20]).await;
    world.guest.send(handle, &hello[20..]).await;
    assert_eq!(world.guest.receive(handle, hello.len()).await, hello);

    let other = world.guest.connect_to("1.2.3.4", 443).await.unwrap();
    world.guest.send(other, &client_hello("other.example")).await;
    assert!(!world.guest.end(other).await, "another host at the same address");
    assert_eq!(world.reason("1.2.3.4:443"), "the name `other.example` is not allowed");

    // A protocol without names: its address is what was allowed.
    let plain = world.guest.connect_to("1.2.3.4", 443).await.unwrap();
    world.guest.send(plain, b"\x00plain").await;
    assert_eq!(world.guest.receive(plain, 6).await, b"\x00plain");
}

#[tokio::test]
async fn a_name_that_is_denied_is_not_reached_by_saying_it_elsewhere() {
    let mut world = world(&["deny:*.bad.example"]).await;
    world.echo_server("1.2.3.4:80").await;
    resolve(&mut world, "good.example.").await;
    let handle = world.guest.connect_to("1.2.3.4", 80).await.unwrap();
    world.guest.send(handle, b"GET / HTTP/1.1\r\nHost: x.bad.example\r\n\r\n").await;
    assert!(!world.guest.end(handle).await);
    assert_eq!(world.reason("1.2.3.4:80"), "rule deny:*.bad.example");
}

#[tokio::test]
async fn queries_over_tcp_are_answered_too() {
    let mut world = World::with(&[], &[80], &[]);
    let handle = world.guest.connect_to("192.168.127.1", 53).await.unwrap();
    for id in [1, 2] {
        let query = address_query(id, "host.aegis.internal.");
        let length = u16::try_from(query.len()).unwrap().to_be_bytes();
        world.guest.send(handle, &[&length[..], &query].concat()).await;
        let length = world.guest.receive(handle, 2).await;
        let answer = world.guest.receive(handle, u16::from_be_bytes([length[0], length[1]]).into()).await;
        assert_eq!(addresses(&answer).1, [GATEWAY]);
        assert_eq!(answer[..2], id.to_be_bytes());
    }
}
