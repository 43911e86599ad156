//! A way in for fuzzers. Nothing that they send is a panic, nor reaches anything outside of the directory.

use std::path::PathBuf;
use std::sync::Arc;

use aegis_proto::fuse::{NONCE_BYTES, PLACE_BYTES, REQUEST_HEADER};
use tokio::io::{BufReader, sink};
use tokio::sync::Mutex;

use crate::{Directory, serve};

/// Serves a directory of its own to a guest that sends requests made of these bytes: each of the operation that its first
/// byte says, for a small node, with as much after its header as its second byte says.
pub fn messages(mut bytes: &[u8]) {
    let directory = PathBuf::from(format!("/tmp/aegis-fuzz-fs-{}", std::process::id()));
    let opened = std::fs::create_dir_all(&directory).and_then(|()| Directory::open(&directory, false));
    let Ok(opened) = opened else { return };
    let nonce = [7; NONCE_BYTES];
    let mut sent = nonce.to_vec();
    while let [operation, length, node, rest @ ..] = bytes {
        let (body, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        sent.extend([0; PLACE_BYTES]);
        sent.extend(u32::try_from(REQUEST_HEADER + body.len()).unwrap_or_default().to_le_bytes());
        sent.extend(u32::from(*operation % 64).to_le_bytes());
        sent.extend(1_u64.to_le_bytes());
        sent.extend(u64::from(*node % 16).to_le_bytes());
        sent.extend([0; 16]);
        sent.extend(body);
        bytes = rest;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime without threads can be made").block_on(async {
        // However it ends: the stream is over.
        let _ = serve(&[opened], nonce, &mut BufReader::new(&sent[..]), &Arc::new(Mutex::new(sink()))).await;
    });
    let _ = std::fs::remove_dir_all(&directory);
}

#[cfg(test)]
mod tests {
    use super::messages;

    #[test]
    fn any_bytes_are_survived() {
        let mut state = 1_u64;
        for length in 0..200 {
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                // xorshift64: the same bytes each time.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .take(length * 20)
            .collect();
            messages(&bytes);
        }
    }
}
