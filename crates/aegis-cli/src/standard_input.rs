//! Standard input as it comes, for a process in a guest.

use std::io;
use std::thread;

use aegis_types::frame::CHUNK_MAX;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};
use tokio::sync::mpsc;

/// Pieces that were read and not taken yet.
const QUEUE: usize = 2;

/// Pieces of at most [`CHUNK_MAX`] bytes, then the end, or an error.
///
/// A read cannot be given up, so it happens in a thread of its own, which does not keep the process from ending.
pub(crate) fn pieces() -> io::Result<mpsc::Receiver<io::Result<Vec<u8>>>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    thread::Builder::new().name("stdin".into()).spawn(move || pass_on(&sender))?;
    Ok(receiver)
}

fn pass_on(sender: &mpsc::Sender<io::Result<Vec<u8>>>) {
    // Not through the standard library, which would keep in a buffer what was typed for somebody else.
    let stdin = io::stdin();
    let mut buffer = vec![0; CHUNK_MAX];
    loop {
        let piece = match read(&stdin, &mut buffer) {
            Ok(0) => return,
            Ok(length) => Ok(buffer[..length].to_vec()),
            Err(Errno::INTR) => continue,
            // Whoever shares it with us has made it non-blocking.
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        };
        let failed = piece.is_err();
        if sender.blocking_send(piece).is_err() || failed {
            return;
        }
    }
}
