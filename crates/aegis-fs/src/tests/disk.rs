//! The content of files as a disk: a client of NBD, well-behaved or not.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aegis_proto::fuse::{CONTENT_BYTES, CONTENT_HEAD, CONTENT_MAX, Content};

use super::kernel::{Kernel, ROOT, scratch};
use crate::disk::serve_content;

const GO: u32 = 7;
const STRUCTURED_REPLIES: u32 = 8;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;

struct Client {
    stream: UnixStream,
    server: JoinHandle<io::Result<()>>,
}

impl Client {
    /// As far as the server's greeting.
    fn greeted(kernel: &Kernel) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let directories = vec![Arc::clone(&kernel.directory)];
        let server = thread::spawn(move || serve_content(&theirs, &directories));
        let mut client = Self { stream, server };
        assert_eq!(&client.take::<18>(), b"NBDMAGICIHAVEOPT\0\x03");
        client.send(&[&3_u32.to_be_bytes()]);
        client
    }

    fn ready(kernel: &Kernel) -> Self {
        let mut client = Self::greeted(kernel);
        client.option(STRUCTURED_REPLIES, b"");
        assert_eq!(client.option_reply(), (1 << 31 | 1, vec![]), "not supported");
        client.option(GO, &[0; 6]);
        let (kind, export) = client.option_reply();
        assert_eq!((kind, &export[..10]), (3, &[&[0, 0], &CONTENT_BYTES.to_be_bytes()[..]].concat()[..]));
        assert_eq!(export[10..], [0, 3], "read-only");
        assert_eq!(client.option_reply().0, 3);
        assert_eq!(client.option_reply(), (1, vec![]));
        client
    }

    fn send(&mut self, parts: &[&[u8]]) {
        self.stream.write_all(&parts.concat()).unwrap();
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn word(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn option(&mut self, option: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        self.send(&[b"IHAVEOPT", &option.to_be_bytes(), &length.to_be_bytes(), data]);
    }

    fn option_reply(&mut self) -> (u32, Vec<u8>) {
        let _magic_and_option: [u8; 12] = self.take();
        let (kind, length) = (self.word(), self.word());
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data).unwrap();
        (kind, data)
    }

    fn ask(&mut self, command: u16, address: u64, length: u32) {
        let (magic, cookie) = (0x2560_9513_u32.to_be_bytes(), address.rotate_left(7).to_be_bytes());
        let (command, length) = (command.to_be_bytes(), length.to_be_bytes());
        self.send(&[&magic, &[0, 0], &command, &cookie, &address.to_be_bytes(), &length]);
    }

    fn read(&mut self, address: u64, length: usize) -> Result<Vec<u8>, u32> {
        self.ask(READ, address, u32::try_from(length).unwrap());
        assert_eq!(self.word(), 0x6744_6698);
        let error = self.word();
        assert_eq!(u64::from_be_bytes(self.take()), address.rotate_left(7));
        if error != 0 {
            return Err(error);
        }
        let mut sectors = vec![0; length];
        self.stream.read_exact(&mut sectors).unwrap();
        Ok(sectors)
    }

    /// What is said about a piece of content, and the piece.
    fn content(&mut self, place: u32, handle: u64, offset: u64, size: usize) -> (i32, Vec<u8>) {
        let address = Content { place, handle, offset }.address().unwrap();
        let mut sectors = self.read(address, CONTENT_HEAD + size).unwrap();
        let outcome = i32::from_le_bytes(sectors[..4].try_into().unwrap());
        (outcome, sectors.split_off(CONTENT_HEAD))
    }

    fn ended(mut self) -> io::Result<()> {
        // It may have left already, without having read everything.
        let _ = self.stream.shutdown(Shutdown::Write);
        let _ = self.stream.read_to_end(&mut Vec::new());
        self.server.join().unwrap()
    }
}

#[tokio::test]
async fn what_is_in_an_open_file_is_on_the_disk() {
    let dir = scratch();
    let written: Vec<u8> = (0..CONTENT_MAX + 5000).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
    fs::write(dir.path().join("long"), &written).unwrap();
    let mut kernel = Kernel::mount(dir.path()).await;
    let node = kernel.look_up(ROOT, "long").await.unwrap();
    let handle = kernel.open(node, libc::O_RDONLY).await.unwrap();
    let mut client = Client::ready(&kernel);
    let (there, first) = client.content(0, handle, 0, CONTENT_MAX);
    assert_eq!((there as usize, &first[..]), (CONTENT_MAX, &written[..CONTENT_MAX]));
    let (there, rest) = client.content(0, handle, CONTENT_MAX as u64, 8192);
    assert_eq!((there, &rest[..5000], &rest[5000..]), (5000, &written[CONTENT_MAX..], &[0; 3192][..]));
    assert_eq!(client.content(0, handle, 1 << 30, 4096), (0, vec![0; 4096]), "behind its end");
    client.ask(DISCONNECT, 0, 0);
    client.ended().unwrap();
}

#[tokio::test]
async fn nothing_else_is_on_the_disk() {
    let dir = scratch();
    fs::write(dir.path().join("file"), "content").unwrap();
    let mut kernel = Kernel::mount(dir.path()).await;
    let node = kernel.look_up(ROOT, "file").await.unwrap();
    let readable = kernel.open(node, libc::O_RDONLY).await.unwrap();
    let writable = kernel.open(node, libc::O_WRONLY).await.unwrap();
    let mut client = Client::ready(&kernel);
    let nothing = vec![0; 4096];
    for (place, handle) in [(0, writable), (0, readable + 1000), (1, readable), (7, 1)] {
        assert_eq!(client.content(place, handle, 0, 4096), (-libc::EBADF, nothing.clone()));
    }
    // Where partitions and file systems are looked for, and between addresses.
    let file = Content { place: 0, handle: readable, offset: 0 }.address().unwrap();
    for address in [0, 512, CONTENT_BYTES - 512, file + 512, u64::MAX] {
        assert_eq!(client.read(address, 512).unwrap(), vec![0; 512], "{address}");
    }
    assert_eq!(client.read(file, 8).unwrap(), vec![0; 8], "less than a sector");
    assert_eq!(client.read(file, (1 << 20) + 512), Err(22), "more than is read at once");
    assert_eq!(client.content(0, readable, 0, 512).0, 7, "and it goes on");
    client.ended().unwrap_err();
}

#[tokio::test]
async fn a_file_that_was_closed_is_not_on_the_disk() {
    let dir = scratch();
    fs::write(dir.path().join("file"), "content").unwrap();
    let mut kernel = Kernel::mount(dir.path()).await;
    let node = kernel.look_up(ROOT, "file").await.unwrap();
    let handle = kernel.open(node, libc::O_RDONLY).await.unwrap();
    let mut client = Client::ready(&kernel);
    assert_eq!(client.content(0, handle, 0, 512).0, 7);
    kernel.release(node, handle).await;
    kernel.attributes(node).await.expect("answered after that");
    assert_eq!(client.content(0, handle, 0, 512).0, -libc::EBADF);
}

#[tokio::test]
async fn a_client_that_does_not_speak_the_protocol_is_left() {
    let dir = scratch();
    let kernel = Kernel::mount(dir.path()).await;
    let refused = |error: io::Result<()>| assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidData);
    let mut client = Client::greeted(&kernel);
    client.send(&[b"GET / HTTP/1.1\r\n\r\n"]);
    refused(client.ended());
    let mut client = Client::greeted(&kernel);
    client.send(&[b"IHAVEOPT", &GO.to_be_bytes(), &u32::MAX.to_be_bytes()]);
    refused(client.ended());
    let mut client = Client::greeted(&kernel);
    for _ in 0..40 {
        // The server may have left.
        let option = [&b"IHAVEOPT"[..], &99_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat();
        let _ = client.stream.write_all(&option);
    }
    refused(client.ended());
    let mut client = Client::ready(&kernel);
    client.ask(WRITE, 0, 4096);
    refused(client.ended());
    let mut client = Client::ready(&kernel);
    client.send(&[&[7; 28]]);
    refused(client.ended());
}
