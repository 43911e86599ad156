//! `aegis bench`: that it measures, not what.

use aegis_e2e::Aegis;

#[test]
fn starts_are_measured_beside_a_bare_vmm() {
    let report = Aegis::new().with_templates().aegis(["bench", "start", "--runs", "1"]).expect_ok().out();
    for row in ["bare restore, spawn to first RPC", "template start, spawn to first answer"] {
        assert!(report.contains(row), "no `{row}` in {report}");
    }
}
