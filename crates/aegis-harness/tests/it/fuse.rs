//! Mounted directories: messages between a kernel and a host, both of which are the test.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use aegis_harness::SessionEnd;
use aegis_harness::sys::fake::{Call, FakeSys};
use aegis_link::Stream;
use aegis_link::host::{HostLink, greet};
use aegis_link::rpc::Client;
use aegis_proto::control::PARK;
use aegis_proto::fuse::{CONTENT_HEAD, Content, END, NONCE_BYTES, TOLD_SECONDS};
use aegis_proto::hello::{GuestMount, Hello};
use aegis_proto::service::Service;
use aegis_types::MountPoint;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::vm::{Host, Vm, hello, sh, within};

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const GETXATTR: u32 = 22;
const INIT: u32 = 26;
const CREATE: u32 = 35;
const RENAME2: u32 = 45;

fn nonce(byte: u8) -> [u8; NONCE_BYTES] {
    [byte; NONCE_BYTES]
}

fn mounting() -> Hello {
    let mount = GuestMount { target: MountPoint::workspace(), read_only: false };
    Hello { mounts: vec![mount], ..hello() }
}

fn request(operation: u32, number: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + body.len()).unwrap();
    let head = [&length.to_le_bytes()[..], &operation.to_le_bytes(), &number.to_le_bytes()].concat();
    [&head[..], &[0; 24], body].concat()
}

/// A request about something in a directory.
fn request_in(directory: u64, operation: u32, number: u64, body: &[u8]) -> Vec<u8> {
    let mut message = request(operation, number, body);
    message[16..24].copy_from_slice(&directory.to_le_bytes());
    message
}

/// A node with a name and attributes that are valid for so many seconds.
fn entry(node: u64, valid: u64) -> Vec<u8> {
    [&[node, 0, valid, valid].map(u64::to_le_bytes).concat()[..], &[0; 96]].concat()
}

fn answer(error: i32, number: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap();
    [&length.to_le_bytes()[..], &error.to_le_bytes(), &number.to_le_bytes(), body].concat()
}

fn frame(message: &[u8]) -> Vec<u8> {
    [&[0; 4], message].concat()
}

/// The kernel's end of a mount.
#[derive(Clone)]
struct Kernel(Arc<OwnedFd>);

impl Kernel {
    fn asks(&self, message: &[u8]) {
        send(&self.0, message, SendFlags::empty()).unwrap();
    }

    async fn hears(&self) -> Vec<u8> {
        let device = Arc::clone(&self.0);
        let heard = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; 64 * 1024];
            let (length, _) = recv(&device, &mut buffer[..], RecvFlags::empty()).unwrap();
            buffer.truncate(length);
            buffer
        });
        within(heard).await.unwrap()
    }
}

/// The host's side of a guest with one mount.
struct Guest {
    vm: Vm,
    kernel: Kernel,
    link: HostLink,
    session: tokio::task::JoinHandle<SessionEnd>,
}

impl Guest {
    async fn new() -> Self {
        Self::on(FakeSys::new()).await
    }

    async fn on(sys: FakeSys) -> Self {
        let vm = Vm::on(sys);
        let (carrier, session) = vm.connect();
        let (link, _) = within(greet(carrier, mounting())).await.unwrap();
        let sys = Arc::clone(&vm.sys);
        let kernel = within(until(move || sys.take_fuse("/workspace"))).await;
        Self { vm, kernel: Kernel(Arc::new(kernel)), link, session }
    }

    async fn begin(&self, nonce: [u8; NONCE_BYTES]) -> Stream {
        let mut stream = within(self.link.open(Service::Fuse)).await.unwrap();
        stream.write_all(&nonce).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }

    /// The port, once the first session has begun.
    async fn port(&self) -> UnixStream {
        let sys = Arc::clone(&self.vm.sys);
        let port = within(until(move || sys.take_fuse_port())).await;
        let port = std::os::unix::net::UnixStream::from(port);
        port.set_nonblocking(true).unwrap();
        UnixStream::from_std(port).unwrap()
    }
}

async fn until<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = probe() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn expect(port: &mut UnixStream, bytes: &[u8]) {
    let mut received = vec![0; bytes.len()];
    within(port.read_exact(&mut received)).await.unwrap();
    assert_eq!(received, bytes);
}

#[tokio::test]
async fn messages_travel_once_there_is_a_session() {
    let guest = Guest::new().await;
    let first = request(INIT, 1, &[7; 100]);
    guest.kernel.asks(&first);
    let _stream = guest.begin(nonce(1)).await;
    let mut port = guest.port().await;
    expect(&mut port, &nonce(1)).await;
    expect(&mut port, &frame(&first)).await;
    // What is left of an earlier session does not count, wherever it ends.
    let reply = answer(0, 1, &[9; 300]);
    let sent = [&[3; 100][..], &nonce(1), &frame(&reply)].concat();
    for piece in sent.chunks(37) {
        port.write_all(piece).await.unwrap();
        port.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(guest.kernel.hears().await, reply);
    // Told unasked.
    let notice = answer(2, 0, &[5; 24]);
    port.write_all(&frame(&notice)).await.unwrap();
    assert_eq!(guest.kernel.hears().await, notice);
}

#[tokio::test]
async fn what_needs_no_host_is_answered_in_the_guest() {
    let guest = Guest::new().await;
    let _stream = guest.begin(nonce(1)).await;
    let mut port = guest.port().await;
    expect(&mut port, &nonce(1)).await;
    guest.kernel.asks(&request(GETXATTR, 5, b"\0\0\0\0\0\0\0\0security.capability\0"));
    assert_eq!(guest.kernel.hears().await, answer(-61, 5, &[]));
    let release = request(RELEASE, 7, &[1; 24]);
    guest.kernel.asks(&release);
    assert_eq!(guest.kernel.hears().await, answer(0, 7, &[]));
    let users = request(GETXATTR, 9, b"\0\0\0\0\0\0\0\0user.mine\0");
    guest.kernel.asks(&users);
    // In their order, and the first one needs nobody to ask for something.
    expect(&mut port, &frame(&release)).await;
    expect(&mut port, &frame(&users)).await;
}

/// A guest that has made directory 7, of which the host says this.
async fn with_directory(valid: u64, told: Option<&[u8]>) -> (Guest, Stream, UnixStream) {
    let guest = Guest::new().await;
    let stream = guest.begin(nonce(1)).await;
    let mut port = guest.port().await;
    expect(&mut port, &nonce(1)).await;
    port.write_all(&nonce(1)).await.unwrap();
    let make = request_in(1, MKDIR, 3, b"\0\0\0\0\0\0\0\0new\0");
    guest.kernel.asks(&make);
    expect(&mut port, &frame(&make)).await;
    if let Some(notice) = told {
        port.write_all(&frame(notice)).await.unwrap();
        assert_eq!(guest.kernel.hears().await, notice);
    }
    let made = answer(0, 3, &entry(7, valid));
    port.write_all(&frame(&made)).await.unwrap();
    assert_eq!(guest.kernel.hears().await, made);
    (guest, stream, port)
}

fn look_up(number: u64, name: &str) -> Vec<u8> {
    request_in(7, LOOKUP, number, format!("{name}\0").as_bytes())
}

#[tokio::test]
async fn nothing_is_in_a_new_directory_but_what_the_guest_puts_there() {
    let (guest, _stream, mut port) = with_directory(TOLD_SECONDS, None).await;
    let missing = |number| answer(-libc::ENOENT, number, &[]);
    for number in [5, 7] {
        guest.kernel.asks(&look_up(number, "a"));
        assert_eq!(guest.kernel.hears().await, missing(number));
    }
    let renamed = |flags: &[u8]| [&7_u64.to_le_bytes()[..], flags, b"before\0"].concat();
    let puts = [
        (7, CREATE, [&[0; 16][..], b"created\0"].concat(), "created"),
        (7, MKNOD, [&[0; 16][..], b"pipe\0"].concat(), "pipe"),
        (7, MKDIR, [&[0; 8][..], b"below\0"].concat(), "below"),
        (7, SYMLINK, b"link\0target\0".to_vec(), "link"),
        (7, LINK, [&[9; 8][..], b"hard\0"].concat(), "hard"),
        (1, RENAME, [renamed(&[]), b"moved\0".to_vec()].concat(), "moved"),
        (1, RENAME2, [renamed(&[0; 8]), b"exchanged\0".to_vec()].concat(), "exchanged"),
    ];
    for (number, (directory, operation, body, name)) in (11..).step_by(4).zip(puts) {
        let put = request_in(directory, operation, number, &body);
        guest.kernel.asks(&put);
        expect(&mut port, &frame(&put)).await;
        let look = look_up(number + 2, name);
        guest.kernel.asks(&look);
        expect(&mut port, &frame(&look)).await;
        for number in [number, number + 2] {
            port.write_all(&frame(&answer(-libc::EIO, number, &[]))).await.unwrap();
            assert_eq!(guest.kernel.hears().await, answer(-libc::EIO, number, &[]));
        }
    }
    for (number, name) in [(51, "target"), (53, "before")] {
        guest.kernel.asks(&look_up(number, name));
        assert_eq!(guest.kernel.hears().await, missing(number), "{name}");
    }
    // The first change by others ends it, whatever it is.
    let notice = answer(3, 0, &[&7_u64.to_le_bytes()[..], &[4, 0, 0, 0, 0, 0, 0, 0], b"news\0"].concat());
    port.write_all(&frame(&notice)).await.unwrap();
    assert_eq!(guest.kernel.hears().await, notice);
    let look = look_up(55, "target");
    guest.kernel.asks(&look);
    expect(&mut port, &frame(&look)).await;
}

#[tokio::test]
async fn the_host_is_asked_about_a_new_directory_of_which_it_does_not_tell() {
    let notice = answer(2, 0, &[&7_u64.to_le_bytes()[..], &[0; 16]].concat());
    for (valid, told) in [(TOLD_SECONDS - 1, None), (TOLD_SECONDS, Some(&notice[..]))] {
        let (guest, _stream, mut port) = with_directory(valid, told).await;
        let look = look_up(5, "a");
        guest.kernel.asks(&look);
        expect(&mut port, &frame(&look)).await;
    }
}

#[tokio::test]
async fn a_session_begins_without_what_was_known_of_new_directories() {
    let (guest, stream, mut port) = with_directory(TOLD_SECONDS, None).await;
    drop(stream);
    let _stream = guest.begin(nonce(2)).await;
    expect(&mut port, &nonce(2)).await;
    let look = look_up(5, "a");
    guest.kernel.asks(&look);
    expect(&mut port, &frame(&look)).await;
}

/// A request to read from an open file.
fn reading(number: u64, content: Content, size: u32) -> Vec<u8> {
    let place = [content.handle, content.offset].map(u64::to_le_bytes).concat();
    request(READ, number, &[&place[..], &size.to_le_bytes(), &[0; 20]].concat())
}

#[tokio::test]
async fn long_reads_come_from_the_disk() {
    const SIZE: u32 = 32 * 1024;
    let disk = tempfile::NamedTempFile::new().unwrap();
    let show = |content: Content, outcome: i32, bytes: &[u8]| {
        let head = [&outcome.to_le_bytes()[..], &[0; CONTENT_HEAD - 4]].concat();
        let address = content.address().unwrap();
        disk.as_file()
            .write_all_at(&[&head, bytes, &vec![0; SIZE as usize - bytes.len()]].concat(), address)
            .unwrap();
    };
    let content = |handle, offset| Content { place: 0, handle, offset };
    let text: Vec<u8> = (0..20_000_u32).map(|at| u8::try_from(at % 199).unwrap()).collect();
    show(content(3, 4096), 20_000, &text);
    show(content(4, 0), -libc::ESTALE, &[]);
    let guest = Guest::on(FakeSys::new().with_content_disk(disk.path())).await;
    let _stream = guest.begin(nonce(1)).await;
    let mut port = guest.port().await;
    expect(&mut port, &nonce(1)).await;
    guest.kernel.asks(&reading(1, content(3, 4096), SIZE));
    assert_eq!(guest.kernel.hears().await, answer(0, 1, &text));
    guest.kernel.asks(&reading(3, content(4, 0), SIZE));
    assert_eq!(guest.kernel.hears().await, answer(-libc::ESTALE, 3, &[]));
    // What the disk does not have comes over the port: short reads, places without an address, and what cannot be read.
    let others = [
        reading(5, content(3, 4096), 8192),
        reading(7, content(3, 100), SIZE),
        reading(9, content(1 << 40, 0), SIZE),
        reading(11, content(9, 1 << 34), SIZE),
    ];
    for other in others {
        guest.kernel.asks(&other);
        expect(&mut port, &frame(&other)).await;
    }
}

#[tokio::test]
async fn nobody_waits_for_a_session_that_is_over() {
    let guest = Guest::new().await;
    let first = request(INIT, 1, &[]);
    guest.kernel.asks(&first);
    let stream = guest.begin(nonce(1)).await;
    let mut port = guest.port().await;
    expect(&mut port, &nonce(1)).await;
    expect(&mut port, &frame(&first)).await;
    let second = request(GETATTR, 3, &[]);
    guest.kernel.asks(&second);
    expect(&mut port, &frame(&second)).await;
    drop(stream);
    assert_eq!(
        guest.kernel.hears().await,
        answer(-5, 3, &[]),
        "and not the first, without which nothing works"
    );
    let third = request(GETATTR, 5, &[]);
    guest.kernel.asks(&third);
    let _stream = guest.begin(nonce(2)).await;
    expect(&mut port, &nonce(2)).await;
    expect(&mut port, &frame(&first)).await;
    expect(&mut port, &frame(&third)).await;
    // An answer to the earlier session is none.
    let late = [&frame(&answer(0, 3, &[]))[..], &nonce(2), &frame(&answer(0, 5, &[]))].concat();
    port.write_all(&late).await.unwrap();
    assert_eq!(guest.kernel.hears().await, answer(0, 5, &[]));
}

#[tokio::test]
async fn a_guest_is_parked_with_nothing_on_its_way() {
    let guest = Guest::new().await;
    let _stream = guest.begin(nonce(1)).await;
    let mut port = guest.port().await;
    expect(&mut port, &nonce(1)).await;
    port.write_all(&nonce(1)).await.unwrap();
    let asked = request(GETATTR, 3, &[]);
    guest.kernel.asks(&asked);
    expect(&mut port, &frame(&asked)).await;
    let control = within(guest.link.open(Service::Control)).await.unwrap();
    let (control, _) = Client::new(control);
    let parking = tokio::spawn(async move { control.call::<_, ()>(PARK, &()).await });
    // It waits for this answer.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!parking.is_finished());
    port.write_all(&frame(&answer(0, 3, &[]))).await.unwrap();
    assert_eq!(guest.kernel.hears().await, answer(0, 3, &[]));
    within(parking).await.unwrap().unwrap();
    let mut end = vec![0; 44];
    end[..4].copy_from_slice(&END.to_le_bytes());
    end[4] = 40;
    expect(&mut port, &end).await;
    // What is asked from now on waits for the next session, over a new link.
    let later = request(GETATTR, 5, &[]);
    guest.kernel.asks(&later);
    guest.link.close();
    assert!(matches!(within(guest.session).await.unwrap(), SessionEnd::Parked));
    let (carrier, _session) = guest.vm.connect();
    let (link, _) = within(greet(carrier, mounting())).await.unwrap();
    let mut stream = within(link.open(Service::Fuse)).await.unwrap();
    stream.write_all(&nonce(2)).await.unwrap();
    stream.flush().await.unwrap();
    expect(&mut port, &nonce(2)).await;
    expect(&mut port, &frame(&later)).await;
    assert!(guest.vm.sys.take_fuse("/workspace").is_none(), "it was not mounted again");
}

#[tokio::test]
async fn without_its_directories_nothing_starts() {
    let vm = Vm::on(FakeSys::new().with_broken_mount("fuse"));
    let (carrier, _session) = vm.connect();
    let (link, _) = within(greet(carrier, mounting())).await.unwrap();
    let (control, _) = Client::new(within(link.open(Service::Control)).await.unwrap());
    let host = Host { link, control };
    let refused = host.run(sh("true")).await.unwrap_err();
    assert!(refused.to_string().contains("cannot mount /workspace"), "{refused}");
}

#[tokio::test]
async fn a_clone_goes_on_with_the_mount_of_its_template() {
    for read_only in [false, true] {
        let vm = Vm::on(FakeSys::new());
        let (carrier, session) = vm.connect();
        let (link, _) = within(greet(carrier, Hello { template: true, ..mounting() })).await.unwrap();
        let sys = Arc::clone(&vm.sys);
        let kernel = Kernel(Arc::new(within(until(move || sys.take_fuse("/workspace"))).await));
        // Nobody answers it in the template.
        let first = request(INIT, 1, &[]);
        kernel.asks(&first);
        let (control, _) = Client::new(within(link.open(Service::Control)).await.unwrap());
        let () = within(control.call(PARK, &())).await.unwrap();
        link.close();
        assert!(matches!(within(session).await.unwrap(), SessionEnd::Parked));

        let (carrier, session) = vm.connect();
        let mount = GuestMount { target: MountPoint::workspace(), read_only };
        let (link, _) = within(greet(carrier, Hello { mounts: vec![mount], ..hello() })).await.unwrap();
        let guest = Guest { vm, kernel, link, session };
        let _stream = guest.begin(nonce(1)).await;
        let mut port = guest.port().await;
        expect(&mut port, &nonce(1)).await;
        expect(&mut port, &frame(&first)).await;
        let sys = Arc::clone(&guest.vm.sys);
        let changed = Call::MakeReadOnly("/workspace".to_owned());
        within(until(move || (sys.calls().contains(&changed) == read_only).then_some(()))).await;
        let is_fuse = |call: &Call| matches!(call, Call::Mount { kind, .. } if kind == "fuse");
        assert_eq!(guest.vm.sys.calls().into_iter().filter(is_fuse).count(), 1);
    }
}
