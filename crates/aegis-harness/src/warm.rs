//! What nearly every command needs first: read into the page cache of a template, so that its clones need not.
//!
//! Files are only read. A template must not have run anything of its image: what a hostile program left behind would
//! be in every clone.

use std::path::Path;

use crate::sys::Sys;

/// The C library and its loader, a shell, and BusyBox where that is every command. Names that an image does not have
/// cost nothing.
const FILES: &[&str] = &[
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/aarch64-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
    "/etc/ld.so.cache",
    "/bin/sh",
    "/bin/busybox",
    "/bin/true",
];

/// Nothing of the kind is larger.
const BYTES_MAX: u64 = 8 << 20;

/// Reads them.
pub(crate) fn read_common_files(sys: &dyn Sys) {
    for path in FILES {
        // A missing one is another image's, and an odd one does not help.
        let _ = sys.cache_file(Path::new(path), BYTES_MAX);
    }
}
