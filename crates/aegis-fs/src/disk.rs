//! The content of open files as a disk, by the NBD protocol (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>):
//! the "fixed newstyle" handshake, and of the commands reading and leaving.
//!
//! Addresses and what is found there are those of [`aegis_proto::fuse`]. A guest may read wherever it likes: it gets what it
//! can read as a file, too, or the reason why not.

use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;

use aegis_proto::fuse::{CONTENT_BYTES, CONTENT_HEAD, CONTENT_MAX, Content};

use crate::Directory;

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags: fixed newstyle, no padding.
const HANDSHAKE_FLAGS: u16 = 1 | 1 << 1;
/// Transmission flags: there are flags; read-only.
const EXPORT_FLAGS: u16 = 1 | 1 << 1;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;

const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const COMMAND_READ: u16 = 0;
const COMMAND_DISCONNECT: u16 = 2;

/// Longest option; names of exports have at most as many bytes.
const OPTION_MAX: u32 = 4096;
/// Options before the transmission.
const OPTIONS_MAX: usize = 32;
const SECTOR: u32 = 512;
/// Bytes of one read: what a block layer makes of two adjacent ones.
const READ_MAX: usize = 1 << 20;
/// Bytes of a request after its magic.
const REQUEST_BYTES: usize = 24;
/// Bytes of the header of a reply.
const REPLY_BYTES: usize = 16;

/// Serves the disk for directories, each by its place, until the client leaves.
///
/// # Errors
/// The stream broke, or the client does not speak NBD: [`io::ErrorKind::InvalidData`].
pub fn serve_content<S>(stream: &S, directories: &[Arc<Directory>]) -> io::Result<()>
where
    for<'a> &'a S: Read + Write,
{
    // Each request is two small reads otherwise.
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    if !shake_hands(&mut reader, &mut writer)? {
        return Ok(());
    }
    let mut reply = Vec::new();
    loop {
        match u32::from_be_bytes(take(&mut reader)?) {
            REQUEST_MAGIC => {}
            other => return Err(invalid(format!("{other:#x} begins no request"))),
        }
        let request: [u8; REQUEST_BYTES] = take(&mut reader)?;
        // Behind two bytes of flags, none of which we offer.
        let command = u16::from_be_bytes([request[2], request[3]]);
        let cookie: [u8; 8] = request[4..12].try_into().expect("eight bytes");
        let address = u64::from_be_bytes(request[12..20].try_into().expect("eight bytes"));
        let length = u32::from_be_bytes(request[20..].try_into().expect("four bytes")) as usize;
        let error = match command {
            COMMAND_READ if length <= READ_MAX => 0,
            COMMAND_DISCONNECT => return Ok(()),
            // Anything else may be followed by bytes of its own.
            COMMAND_READ => libc::EINVAL,
            other => return Err(invalid(format!("the disk cannot carry out command {other}"))),
        };
        reply.clear();
        reply.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
        reply.extend_from_slice(&error.to_be_bytes());
        reply.extend_from_slice(&cookie);
        if error == 0 {
            reply.resize(REPLY_BYTES + length, 0);
            read(directories, address, &mut reply[REPLY_BYTES..]);
        }
        writer.write_all(&reply)?;
    }
}

/// Fills zeroed sectors with what is at an address.
fn read(directories: &[Arc<Directory>], address: u64, sectors: &mut [u8]) {
    // Whoever looks for partitions or file systems finds none.
    let Some(content) = Content::at(address).filter(|content| content.handle != 0) else { return };
    let Some((head, space)) = sectors.split_at_mut_checked(CONTENT_HEAD) else { return };
    let length = space.len().min(CONTENT_MAX);
    let space = &mut space[..length];
    let directory = usize::try_from(content.place).ok().and_then(|place| directories.get(place));
    let read = match directory {
        Some(directory) => directory.read_handle(content.handle, space, content.offset),
        None => Err(crate::error(libc::EBADF)),
    };
    let outcome = match read {
        Ok(count) => i32::try_from(count).expect("at most CONTENT_MAX"),
        Err(error) => {
            // What was read before it failed is nobody's business.
            space.fill(0);
            -error.raw_os_error().unwrap_or(libc::EIO)
        }
    };
    head[..4].copy_from_slice(&outcome.to_le_bytes());
}

/// Whether the client goes on to read.
fn shake_hands(reader: &mut impl Read, writer: &mut impl Write) -> io::Result<bool> {
    let greeting = [&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &HANDSHAKE_FLAGS.to_be_bytes()];
    writer.write_all(&greeting.concat())?;
    let padded = u32::from_be_bytes(take(reader)?) & u32::from(HANDSHAKE_FLAGS & 1 << 1) == 0;
    for _ in 0..OPTIONS_MAX {
        match u64::from_be_bytes(take(reader)?) {
            OPTION_MAGIC => {}
            other => return Err(invalid(format!("{other:#x} begins no option"))),
        }
        let option = u32::from_be_bytes(take(reader)?);
        let length = u32::from_be_bytes(take(reader)?);
        if length > OPTION_MAX {
            return Err(invalid(format!("an option has {length} bytes")));
        }
        // Every export is the same, so its name does not matter.
        let mut data = vec![0; length as usize];
        reader.read_exact(&mut data)?;
        match option {
            OPTION_EXPORT_NAME => {
                let padding = vec![0; if padded { 124 } else { 0 }];
                writer.write_all(&[&export()[..], &padding].concat())?;
                return Ok(true);
            }
            OPTION_ABORT => {
                writer.write_all(&option_reply(option, REPLY_ACK, &[]))?;
                return Ok(false);
            }
            OPTION_INFO | OPTION_GO => {
                let replies = [
                    option_reply(option, REPLY_INFO, &[&INFO_EXPORT.to_be_bytes()[..], &export()].concat()),
                    option_reply(option, REPLY_INFO, &block_size()),
                    option_reply(option, REPLY_ACK, &[]),
                ];
                writer.write_all(&replies.concat())?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            _ => writer.write_all(&option_reply(option, REPLY_UNSUPPORTED, &[]))?,
        }
    }
    Err(invalid("there is no end of options".to_owned()))
}

fn export() -> Vec<u8> {
    [&CONTENT_BYTES.to_be_bytes()[..], &EXPORT_FLAGS.to_be_bytes()].concat()
}

fn block_size() -> Vec<u8> {
    let largest = u32::try_from(READ_MAX).expect("1 MiB");
    let sizes = [SECTOR, SECTOR, largest].map(u32::to_be_bytes);
    [&INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes.concat()].concat()
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("a few bytes");
    let words = [option, kind, length].map(u32::to_be_bytes);
    [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &words.concat(), data].concat()
}

fn take<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
