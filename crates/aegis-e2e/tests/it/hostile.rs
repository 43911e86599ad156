//! A guest whose PID 1 is the enemy. It breaks the rules of the link; the daemon goes on.

use std::path::{Path, PathBuf};
use std::process::Command;

use aegis_e2e::{Aegis, finish, initramfs, wait_for};

/// An initramfs with the hostile PID 1, which needs nothing but the standard library and the installed compiler.
fn hostile_initramfs(original: &Path, how: &str, dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/hostile.rs");
    let init = dir.join("init");
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--edition=2024", "-O", "-Cpanic=abort", "-Ctarget-feature=+crt-static", "-o"])
        .arg(&init)
        .arg(&source);
    finish(rustc).expect_ok();
    let mut image = std::fs::read(original).unwrap();
    initramfs::append_file(&mut image, "init", 0o755, &std::fs::read(&init).unwrap());
    initramfs::append_file(&mut image, "misbehave", 0o644, how.as_bytes());
    let path = dir.join("hostile.cpio");
    std::fs::write(&path, image).unwrap();
    path
}

/// Starts an instance whose harness misbehaves in this way and waits for its end; the daemon must not mind.
fn misbehave(how: &str) {
    let dir = tempfile::tempdir().unwrap();
    let original = Aegis::new().asset("initramfs.cpio");
    let image = hostile_initramfs(&original, how, dir.path());
    let aegis = Aegis::new().with_env("AEGIS_INITRAMFS", &image).with_env("AEGIS_BOOT_TIMEOUT", "20s");
    aegis.aegis(["up"]).expect_ok();
    let daemon = aegis.daemon_pid();
    aegis.aegis(["instance", "start", "--name", "evil", "--", "true"]).expect_ok();
    let info = wait_for("the instance to stop", || {
        let info = aegis.info("evil");
        (info["state"] == "stopped").then_some(info)
    });
    let reason = info["stop_reason"].as_str().unwrap();
    assert!(["guest_fault", "boot_failed"].contains(&reason), "{how}: {info}");
    assert!(info["last_error"].as_str().is_some_and(|e| !e.is_empty()), "{how}: {info}");
    assert_eq!(aegis.daemon_pid(), daemon);
    aegis.aegis(["status"]).expect_ok();
    assert!(aegis.processes().iter().all(|p| p.program == "aegisd"), "{how}: {:?}", aegis.processes());
}

#[test]
fn garbage_before_the_handshake() {
    misbehave("flood");
}

#[test]
fn garbage_after_the_handshake() {
    misbehave("garbage");
}

#[test]
fn oversized_multiplexer_frames() {
    misbehave("oversized");
}
