//! Setting up the network interface through rtnetlink(7).

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};

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
pub(super) const INTERFACE: &str = "eth0";
const INDEX: &str = "/sys/class/net/eth0/ifindex";
const NO_IPV6: &str = "/proc/sys/net/ipv6/conf/eth0/disable_ipv6";

/// Gives the interface its addresses and its routes, and brings it up. Idempotent.
pub(super) fn configure(network: &GuestNetwork) -> io::Result<()> {
    let index = index()?;
    // A kernel without IPv6 has no such file.
    match fs::write(NO_IPV6, "1") {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let socket = connect()?;
    ask(&socket, link_up(index, network)?)?;
    ask(&socket, RouteNetlinkMessage::NewAddress(address(index, network)))?;
    ask(&socket, route(index, network.gateway))
}

/// Takes the address of this network from the interface, and takes that down; either takes the routes.
pub(super) fn remove(network: &GuestNetwork) -> io::Result<()> {
    let (index, socket) = (index()?, connect()?);
    ask(&socket, RouteNetlinkMessage::DelAddress(address(index, network)))?;
    ask(&socket, RouteNetlinkMessage::SetLink(link(index, LinkFlags::empty())))
}

fn index() -> io::Result<u32> {
    fs::read_to_string(INDEX)?.trim().parse().map_err(io::Error::other)
}

fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Six bytes in hexadecimal with colons between them.
pub(super) fn parse_mac(text: &str) -> io::Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "it is no hardware address"))
}

/// A message about the interface, which changes whether it is up.
fn link(index: u32, flags: LinkFlags) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = flags;
    link.header.change_mask = LinkFlags::Up;
    link
}

fn link_up(index: u32, network: &GuestNetwork) -> io::Result<RouteNetlinkMessage> {
    let mut link = link(index, LinkFlags::Up);
    let mac = parse_mac(&network.mac)?.to_vec();
    link.attributes = vec![LinkAttribute::Address(mac), LinkAttribute::Mtu(network.mtu.into())];
    Ok(RouteNetlinkMessage::SetLink(link))
}

fn address(index: u32, network: &GuestNetwork) -> AddressMessage {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = network.prefix;
    address.header.index = index;
    let own = IpAddr::V4(network.address);
    address.attributes = vec![AddressAttribute::Local(own), AddressAttribute::Address(own)];
    address
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
