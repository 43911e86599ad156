//! The disk with the content of mounted files: a thread that answers the VMM for it.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use aegis_fs::{Directory, serve_content};

/// Serves a VMM as long as it lives. The thread can reach what the calling one can.
pub(crate) fn serve(stream: UnixStream, directories: Vec<Arc<Directory>>) {
    let served = move || match serve_content(&stream, &directories) {
        // The VMM has ended.
        Ok(()) => {}
        Err(error) if is_end(&error) => {}
        Err(error) => tracing::warn!(%error, "long reads of mounted files fail"),
    };
    // Without it the stream is closed, and the VMM does not start.
    if let Err(error) = thread::Builder::new().name("content".to_owned()).spawn(served) {
        tracing::error!(%error, "no thread for the content of mounted files");
    }
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}
