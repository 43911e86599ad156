//! Packets of the guest that the stack does not handle itself, and answers to them.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet,
    Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::address::{GATEWAY, GUEST};
use crate::link::MTU;

/// Hardware address of the gateway.
pub(crate) const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x02, 0xae, 0x61, 0x00, 0x00, 0x01]);
const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
const HOPS: u8 = 64;
/// What an ICMP error repeats of the packet it is about, beside its IP header (RFC 792).
const QUOTED: usize = 8;

/// What a frame is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    /// For the stack as it is.
    Plain,
    /// The beginning of a TCP connection.
    Syn { from: SocketAddrV4, to: SocketAddrV4 },
    /// A datagram.
    Udp { from: SocketAddrV4, to: SocketAddrV4, payload: &'a [u8] },
    /// An ICMP echo request to somebody else than the gateway.
    Echo { to: Ipv4Addr, identifier: u16, message: &'a [u8] },
    /// Nothing that a guest of ours sends.
    Foreign,
}

/// What this frame is, and the hardware address that it came from.
pub(crate) fn look(frame: &[u8]) -> (Packet<'_>, Option<EthernetAddress>) {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return (Packet::Foreign, None) };
    let from = Some(ethernet.src_addr()).filter(EthernetAddress::is_unicast);
    let packet = match ethernet.ethertype() {
        EthernetProtocol::Arp => Packet::Plain,
        EthernetProtocol::Ipv4 => look_at_ip(&frame[ETHERNET..]).unwrap_or(Packet::Foreign),
        _ => Packet::Foreign,
    };
    (packet, from)
}

fn look_at_ip(bytes: &[u8]) -> Option<Packet<'_>> {
    let ip = Ipv4Packet::new_checked(bytes).ok()?;
    // Nobody else is there; and parts of packets are not put together.
    if ip.version() != 4 || ip.src_addr() != GUEST || ip.more_frags() || ip.frag_offset() != 0 {
        return None;
    }
    let content = bytes.get(ip.header_len().into()..ip.total_len().into())?;
    Some(match ip.next_header() {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(content).ok()?;
            if !tcp.syn() || tcp.ack() {
                return Some(Packet::Plain);
            }
            Packet::Syn {
                from: SocketAddrV4::new(GUEST, tcp.src_port()),
                to: SocketAddrV4::new(ip.dst_addr(), tcp.dst_port()),
            }
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(content).ok()?;
            Packet::Udp {
                from: SocketAddrV4::new(GUEST, udp.src_port()),
                to: SocketAddrV4::new(ip.dst_addr(), udp.dst_port()),
                payload: content.get(UDP..udp.len().into())?,
            }
        }
        IpProtocol::Icmp if ip.dst_addr() == GATEWAY => Packet::Plain,
        IpProtocol::Icmp => {
            let icmp = Icmpv4Packet::new_checked(content).ok()?;
            if icmp.msg_type() != Icmpv4Message::EchoRequest {
                return None;
            }
            Packet::Echo { to: ip.dst_addr(), identifier: icmp.echo_ident(), message: content }
        }
        _ => return None,
    })
}

/// A frame to the guest with an IP packet that `fill` completes.
fn frame(
    guest: EthernetAddress,
    from: Ipv4Addr,
    kind: IpProtocol,
    length: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET + IP + length];
    let ethernet = EthernetRepr { src_addr: GATEWAY_MAC, dst_addr: guest, ethertype: EthernetProtocol::Ipv4 };
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
    let ip =
        Ipv4Repr { src_addr: from, dst_addr: GUEST, next_header: kind, payload_len: length, hop_limit: HOPS };
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[ETHERNET..]), &ChecksumCapabilities::default());
    fill(&mut bytes[ETHERNET + IP..]);
    bytes
}

/// A datagram to the guest; `None` if it is too long for the link.
pub(crate) fn udp(
    guest: EthernetAddress,
    from: SocketAddrV4,
    to: SocketAddrV4,
    payload: &[u8],
) -> Option<Vec<u8>> {
    if IP + UDP + payload.len() > MTU.into() {
        return None;
    }
    let header = UdpRepr { src_port: from.port(), dst_port: to.port() };
    Some(frame(guest, *from.ip(), IpProtocol::Udp, UDP + payload.len(), |bytes| {
        header.emit(
            &mut UdpPacket::new_unchecked(bytes),
            &IpAddress::Ipv4(*from.ip()),
            &IpAddress::Ipv4(*to.ip()),
            payload.len(),
            |room| room.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
    }))
}

/// Tells the stack where the guest is, as the guest would if it was asked (RFC 826).
pub(crate) fn introduction(guest: EthernetAddress) -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: guest,
        source_protocol_addr: GUEST,
        target_hardware_addr: GATEWAY_MAC,
        target_protocol_addr: GATEWAY,
    };
    let mut bytes = vec![0; ETHERNET + arp.buffer_len()];
    let ethernet = EthernetRepr { src_addr: guest, dst_addr: GATEWAY_MAC, ethertype: EthernetProtocol::Arp };
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
    arp.emit(&mut ArpPacket::new_unchecked(&mut bytes[ETHERNET..]));
    bytes
}

/// A segment of a connection that the guest believes to have, with these numbers for both directions.
pub(crate) fn probe(guest: EthernetAddress, from: SocketAddrV4, to: SocketAddrV4, number: i32) -> Vec<u8> {
    let segment = TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control: TcpControl::None,
        seq_number: TcpSeqNumber(number),
        ack_number: Some(TcpSeqNumber(number)),
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    frame(guest, *from.ip(), IpProtocol::Tcp, segment.buffer_len(), |bytes| {
        segment.emit(
            &mut TcpPacket::new_unchecked(bytes),
            &IpAddress::Ipv4(*from.ip()),
            &IpAddress::Ipv4(*to.ip()),
            &ChecksumCapabilities::default(),
        );
    })
}

/// The answer to an echo request of the guest, from what the host's socket received: a message with the identifier of
/// that socket. `None` for anything else.
pub(crate) fn echo_reply(
    guest: EthernetAddress,
    from: Ipv4Addr,
    identifier: u16,
    message: &[u8],
) -> Option<Vec<u8>> {
    let icmp = Icmpv4Packet::new_checked(message).ok()?;
    if icmp.msg_type() != Icmpv4Message::EchoReply || IP + message.len() > MTU.into() {
        return None;
    }
    let reply = Icmpv4Repr::EchoReply { ident: identifier, seq_no: icmp.echo_seq_no(), data: icmp.data() };
    Some(icmp_frame(guest, from, &reply))
}

/// Tells the guest that the packet in this frame of its cannot be delivered.
pub(crate) fn unreachable(
    guest: EthernetAddress,
    about: &[u8],
    why: Icmpv4DstUnreachable,
) -> Option<Vec<u8>> {
    let bytes = about.get(ETHERNET..)?;
    let ip = Ipv4Packet::new_checked(bytes).ok()?;
    let header = Ipv4Repr::parse(&ip, &ChecksumCapabilities::ignored()).ok()?;
    let data = ip.payload().get(..QUOTED.min(ip.payload().len()))?;
    Some(icmp_frame(guest, GATEWAY, &Icmpv4Repr::DstUnreachable { reason: why, header, data }))
}

fn icmp_frame(guest: EthernetAddress, from: Ipv4Addr, message: &Icmpv4Repr<'_>) -> Vec<u8> {
    frame(guest, from, IpProtocol::Icmp, message.buffer_len(), |bytes| {
        message.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    const GUEST_MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 9]);

    /// A frame as the guest sends it, made from one as it gets them.
    fn turned(mut frame: Vec<u8>, to: Ipv4Addr) -> Vec<u8> {
        let mut ip = Ipv4Packet::new_unchecked(&mut frame[ETHERNET..]);
        ip.set_src_addr(GUEST);
        ip.set_dst_addr(to);
        frame
    }

    #[test]
    fn datagrams_and_echoes_are_recognised_and_foreign_packets_are_not() {
        let there = SocketAddrV4::new(Ipv4Addr::new(1, 2, 3, 4), 53);
        let here = SocketAddrV4::new(GUEST, 4000);
        let frame = turned(udp(GUEST_MAC, here, there, b"hello").unwrap(), *there.ip());
        let expected = Packet::Udp { from: here, to: there, payload: b"hello" };
        assert_eq!(look(&frame), (expected, Some(GATEWAY_MAC)));
        // Padded to the least length of Ethernet.
        let padded = [&frame[..], &[0; 20]].concat();
        assert!(matches!(look(&padded).0, Packet::Udp { payload: b"hello", .. }));

        let mut spoofed = frame.clone();
        Ipv4Packet::new_unchecked(&mut spoofed[ETHERNET..]).set_src_addr(GATEWAY);
        assert_eq!(look(&spoofed).0, Packet::Foreign);
        let mut part = frame.clone();
        Ipv4Packet::new_unchecked(&mut part[ETHERNET..]).set_more_frags(true);
        assert_eq!(look(&part).0, Packet::Foreign);

        let request = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 3, data: b"data" };
        let frame = turned(icmp_frame(GUEST_MAC, GUEST, &request), *there.ip());
        let (Packet::Echo { to, identifier: 7, message }, _) = look(&frame) else { panic!("an echo") };
        assert_eq!(to, *there.ip());
        assert!(echo_reply(GUEST_MAC, to, 7, message).is_none(), "a request is no reply");
        let refused = unreachable(GUEST_MAC, &frame, Icmpv4DstUnreachable::CommProhibited).unwrap();
        let content = Icmpv4Packet::new_checked(&refused[ETHERNET + IP..]).unwrap();
        assert_eq!((content.msg_type(), content.msg_code()), (Icmpv4Message::DstUnreachable, 13));
        assert!(content.verify_checksum());
    }

    proptest! {
        #[test]
        fn no_frame_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), ip in any::<bool>()) {
            look(&bytes);
            unreachable(GUEST_MAC, &bytes, Icmpv4DstUnreachable::HostUnreachable);
            echo_reply(GUEST_MAC, GATEWAY, 1, &bytes);
            if ip && bytes.len() > 16 {
                let mut frame = udp(GUEST_MAC, SocketAddrV4::new(GUEST, 1), SocketAddrV4::new(GATEWAY, 2), &bytes).unwrap();
                let at = ETHERNET + usize::from(bytes[0]) % (IP + UDP);
                frame[at..at + 4].copy_from_slice(&bytes[1..5]);
                look(&frame);
                frame.truncate(usize::from(bytes[1]));
                look(&frame);
                unreachable(GUEST_MAC, &frame, Icmpv4DstUnreachable::HostUnreachable);
            }
        }
    }
}
