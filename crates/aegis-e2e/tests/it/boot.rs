//! Boots that fail.

use aegis_e2e::Aegis;

#[test]
fn a_missing_kernel_is_named() {
    let aegis = Aegis::new().with_env("AEGIS_KERNEL", "/no/such/kernel");
    let output = aegis.aegis(["run", "--", "true"]);
    assert_ne!(output.code, Some(0));
    assert!(output.err().contains("/no/such/kernel"), "{}", output.err());
}

#[test]
fn a_kernel_that_is_none_fails_with_a_reason_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, vec![0x42; 100_000]).unwrap();
    let aegis = Aegis::new().with_env("AEGIS_KERNEL", &kernel);
    let output = aegis.aegis(["run", "--", "true"]).expect_code(125);
    assert!(output.err().starts_with("error: "), "{}", output.err());
    assert_eq!(aegis.list().len(), 0);
    assert!(aegis.processes().iter().all(|p| p.program == "aegisd"), "{:?}", aegis.processes());
}

#[test]
fn a_guest_that_never_answers_is_given_up_with_its_last_console_lines() {
    let dir = tempfile::tempdir().unwrap();
    let initramfs = dir.path().join("initramfs");
    // No init at all: the kernel says so on its console and panics.
    std::fs::write(&initramfs, b"").unwrap();
    let aegis = Aegis::new().with_env("AEGIS_INITRAMFS", &initramfs);
    let output = aegis.aegis(["run", "--", "true"]).expect_code(125);
    assert!(output.err().contains("anic"), "the console tells of the panic: {}", output.err());
    assert_eq!(aegis.list().len(), 0);
}

#[test]
fn doctor_knows_what_a_vm_would_use() {
    let aegis = Aegis::new();
    let report = aegis.aegis(["doctor"]).expect_ok().out();
    for word in ["Accelerator", "Kernel", "Base image", "Confinement"] {
        assert!(report.to_lowercase().contains(&word.to_lowercase()), "no {word} in\n{report}");
    }
    let broken = Aegis::new().with_env("AEGIS_KERNEL", "/no/such/kernel");
    assert!(broken.aegis(["doctor"]).expect_code(1).out().contains("/no/such/kernel"));
}
