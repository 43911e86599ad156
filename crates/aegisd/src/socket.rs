//! Unix sockets with the modes and the path checks that we want.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use aegis_config::env;

/// Longest path that fits into a socket address, in bytes.
const PATH_MAX: usize = 107;

/// Refuses a path that does not fit into a socket address.
pub(crate) fn check_length(path: &Path) -> io::Result<()> {
    let length = path.as_os_str().as_bytes().len();
    if length <= PATH_MAX {
        return Ok(());
    }
    let text = format!(
        "the socket path {} has {length} bytes, the system allows {PATH_MAX}: choose a shorter {}",
        path.display(),
        env::HOME
    );
    Err(io::Error::new(ErrorKind::InvalidInput, text))
}

/// Listens on a path in a private directory, in place of what an earlier process left there. The caller knows that no
/// other process listens.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    check_length(path)?;
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// As [`bind`] for a path in a directory that others may enter: the socket gets its mode in `private` first, which is
/// on the same file system.
pub(crate) fn bind_in_public(path: &Path, private: &Path) -> io::Result<UnixListener> {
    check_length(path)?;
    let hidden = private.join("new.sock");
    let listener = bind(&hidden)?;
    fs::rename(hidden, path)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_by_a_private_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let private = dir.path().join("private");
        fs::create_dir(&private).unwrap();
        drop(bind(&path).unwrap());
        let _first = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = bind_in_public(&path, &private).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let _client = UnixStream::connect(&path).unwrap();
        second.accept().unwrap();
        assert_eq!(fs::read_dir(&private).unwrap().count(), 0);
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused_with_the_way_out() {
        let path = Path::new("/").join("x".repeat(PATH_MAX));
        let text = bind(&path).unwrap_err().to_string();
        assert!(text.contains("has 108 bytes") && text.contains("AEGIS_HOME"), "{text}");
    }
}
