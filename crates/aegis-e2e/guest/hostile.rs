//! A PID 1 that breaks the rules of the guest link. Compiled by the test that boots it; the standard library is
//! all it has. `/misbehave` says how.

use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::Duration;

unsafe extern "C" {
    fn mount(src: *const c_char, dst: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

const SYS_FINIT_MODULE: c_long = 313;

fn mount_at(kind: &str, target: &str) {
    let text = |s: &str| CString::new(s).expect("no NUL");
    let (kind, target) = (text(kind), text(target));
    // SAFETY: three NUL-terminated strings that live during the call, and no data.
    unsafe { mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
}

fn load_modules() {
    for name in fs::read_to_string("/modules/order").unwrap_or_default().lines() {
        if let Ok(file) = File::open(format!("/modules/{name}")) {
            // SAFETY: an open descriptor, an empty NUL-terminated string and no flags.
            unsafe { syscall(SYS_FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0) };
        }
    }
}

fn port() -> Option<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        if fs::read_to_string(entry.path().join("name")).unwrap_or_default().trim() == "aegis.ctl" {
            let path = format!("/dev/{}", entry.file_name().to_string_lossy());
            return OpenOptions::new().read(true).write(true).open(path).ok();
        }
    }
    None
}

/// Reads the greeting and answers it as a good harness would.
fn shake_hands(port: &mut File) {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte[0] != b'\n' {
        match port.read(&mut byte) {
            Ok(1) => line.push(byte[0]),
            _ => sleep(Duration::from_millis(10)),
        }
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    let nonce = text.split("\"nonce\":\"").nth(1).and_then(|t| t.split('"').next()).unwrap_or_default();
    let answer =
        format!("{{\"aegis\":\"welcome\",\"generation\":1,\"nonce\":\"{nonce}\",\"version\":\"evil\",\"boottime_ns\":1}}\n");
    let _ = port.write_all(answer.as_bytes());
}

fn main() {
    mount_at("devtmpfs", "/dev");
    mount_at("proc", "/proc");
    mount_at("sysfs", "/sys");
    load_modules();
    let mut port = loop {
        match port() {
            Some(port) => break port,
            None => sleep(Duration::from_millis(20)),
        }
    };
    let how = fs::read_to_string("/misbehave").unwrap_or_default();
    if how.trim() == "flood" {
        // Never answers, and never stops: megabytes of bytes that are no text.
        loop {
            if port.write_all(&[0xff; 4096]).is_err() {
                sleep(Duration::from_millis(10));
            }
        }
    }
    shake_hands(&mut port);
    let poison: Vec<u8> = match how.trim() {
        // A yamux data frame that announces four gigabytes.
        "oversized" => vec![0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
        _ => (0..8192u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect(),
    };
    let _ = port.write_all(&poison);
    loop {
        sleep(Duration::from_secs(3600));
    }
}
