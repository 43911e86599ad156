//! Setting up the network interface through rtnetlink(7).

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use aegis_proto::hello::GuestNetwork;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// The only interface beside loopback.
const INTERFACE: &str = "/sys/class/net/eth0";
const NO_IPV6: &str = "/proc/sys/net/ipv6/conf/eth0/disable_ipv6";

/// Gives the interface its addresses and its routes, and brings it up. Idempotent.
pub(super) fn configure(network: &GuestNetwork) -> io::Result<()> {
    let index = fs::read_to_string(Path::new(INTERFACE).join("ifindex"))?;
    let index: u32 = index.trim().parse().map_err(io::Error::other)?;
    // A kernel without IPv6 has no such file.
    match fs::write(NO_IPV6, "1") {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    for message in [link(index, network)?, address(index, network), route(index, network.gateway)] {
        ask(&socket, message)?;
    }
    Ok(())
}

fn link(index: u32, network: &GuestNetwork) -> io::Result<RouteNetlinkMessage> {
    let mac: Result<Vec<u8>, _> = network.mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    let mac = mac.map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = vec![LinkAttribute::Address(mac), LinkAttribute::Mtu(network.mtu.into())];
    Ok(RouteNetlinkMessage::SetLink(link))
}

fn address(index: u32, network: &GuestNetwork) -> RouteNetlinkMessage {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = network.prefix;
    address.header.index = index;
    let own = IpAddr::V4(network.address);
    address.attributes = vec![AddressAttribute::Local(own), AddressAttribute::Address(own)];
    RouteNetlinkMessage::NewAddress(address)
}

fn route(index: u32, gateway: Ipv4Addr) -> RouteNetlinkMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Boot;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index)];
    RouteNetlinkMessage::NewRoute(route)
}

/// Sends a request and waits for the kernel's answer to it, which comes at once.
fn ask(socket: &Socket, message: RouteNetlinkMessage) -> io::Result<()> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        NetlinkPayload::Error(_) => Ok(()),
        _ => Err(io::Error::new(ErrorKind::InvalidData, "the kernel answered something else")),
    }
}
