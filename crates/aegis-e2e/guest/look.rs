//! Says what it finds at a path: mode, owner, links and one extended attribute. For images without tools.

use std::ffi::{CString, c_char, c_void};
use std::os::unix::fs::MetadataExt;

unsafe extern "C" {
    fn lgetxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: usize) -> isize;
}

fn attribute(path: &str, name: &str) -> String {
    let (path, name) = (CString::new(path).unwrap(), CString::new(name).unwrap());
    let mut value = [0u8; 256];
    // SAFETY: both texts end with NUL, and the buffer has the size that is named.
    let size = unsafe { lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match usize::try_from(size) {
        Ok(size) => String::from_utf8_lossy(&value[..size]).into_owned(),
        Err(_) => "none".to_owned(),
    }
}

fn main() {
    for path in std::env::args().skip(1) {
        match std::fs::symlink_metadata(&path) {
            Ok(meta) => println!(
                "{path} {:o} {}:{} {} {}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.nlink(),
                attribute(&path, "user.test")
            ),
            Err(error) => println!("{path} {:?}", error.kind()),
        }
    }
}
