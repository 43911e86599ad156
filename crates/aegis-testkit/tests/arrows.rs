//! The arrows between our crates: who may never depend on whom, directly or through others. ARCHITECTURE.md
//! has the reasons.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Normal and build dependencies of every package in the graph, by name; dev-dependencies do not count.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    // Only what a build on this machine needs: the rest may never have been downloaded.
    let options = ["--offline", "--filter-platform", "host-tuple"].map(str::to_owned);
    let metadata = MetadataCommand::new().other_options(options).exec().unwrap();
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|p| (p.id.clone(), p.name.to_string())).collect();
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata.resolve.unwrap().nodes {
        let direct = node
            .deps
            .iter()
            .filter(|d| d.dep_kinds.iter().any(|k| k.kind != DependencyKind::Development))
            .map(|d| names[&d.pkg].clone());
        graph.entry(names[&node.id].clone()).or_default().extend(direct);
    }
    graph
}

/// The shortest chain of dependencies from one package to another.
fn chain(graph: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> Option<Vec<String>> {
    let mut queue = std::collections::VecDeque::from([vec![from.to_owned()]]);
    let mut seen = BTreeSet::from([from.to_owned()]);
    while let Some(path) = queue.pop_front() {
        for next in graph.get(path.last().unwrap()).into_iter().flatten() {
            let mut path = path.clone();
            path.push(next.clone());
            if next == to {
                return Some(path);
            }
            if seen.insert(next.clone()) {
                queue.push_back(path);
            }
        }
    }
    None
}

#[test]
fn forbidden_arrows_do_not_exist() {
    let graph = dependencies();
    let backends = ["aegis-vmm-qemu"];
    let host_only = [
        "aegis-vmm",
        "aegis-vmm-qemu",
        "aegis-vmm-worker",
        "aegis-lifecycle",
        "aegis-store",
        "aegis-fs",
        "aegis-image",
        "aegis-net",
        "aegis-registry",
        "aegis-router",
        "aegisd",
    ];
    let io = ["tokio", "rusqlite", "axum", "hyper"];
    let mut rules: Vec<(&str, Vec<&str>)> = vec![
        ("aegis-types", io.to_vec()),
        ("aegis-api", io.to_vec()),
        ("aegis-proto", io.to_vec()),
        (
            "aegis-lifecycle",
            [&backends[..], &["axum", "hyper", "rusqlite", "aegis-api", "aegis-store"]].concat(),
        ),
        ("aegis-link", vec!["aegis-api", "aegis-vmm", "aegis-lifecycle", "hyper", "rusqlite"]),
        ("aegis-store", vec!["aegis-api", "aegis-proto", "aegis-lifecycle", "axum", "hyper"]),
        (
            "aegis-net",
            vec!["aegis-api", "aegis-link", "aegis-proto", "aegis-vmm", "aegis-lifecycle", "axum", "hyper"],
        ),
        ("aegis-fs", vec!["aegis-api", "aegis-link", "aegis-vmm", "aegis-lifecycle", "axum", "hyper"]),
        ("aegis-copy", vec!["aegis-api", "aegis-proto", "aegis-link", "tokio"]),
        ("aegis-image", vec!["aegis-api", "aegis-proto", "aegis-lifecycle", "tokio"]),
        (
            "aegis-registry",
            vec![
                "aegis-api",
                "aegis-image",
                "aegis-config",
                "aegis-lifecycle",
                "axum",
                "openssl-sys",
                "aws-lc-sys",
            ],
        ),
        (
            "aegis-router",
            vec![
                "aegis-api",
                "aegis-link",
                "aegis-proto",
                "aegis-lifecycle",
                "aegis-store",
                "aegis-vmm",
                "axum",
            ],
        ),
        ("aegis-vmm-worker", vec!["aegis-api", "aegis-lifecycle", "aegis-store", "axum", "rusqlite"]),
    ];
    for backend in backends {
        rules.push((
            backend,
            vec!["aegis-proto", "aegis-link", "aegis-api", "aegis-lifecycle", "aegis-vmm-worker"],
        ));
    }
    // Guest programs never see host crates, host presentation never sees the store or the guest wire.
    rules.push((
        "aegis-harness",
        [&host_only[..], &["aegis-api", "aegis-client", "hyper", "axum", "rusqlite"]].concat(),
    ));
    for presentation in ["aegis-client", "aegis-cli"] {
        rules.push((
            presentation,
            [&host_only[..], &["aegis-proto", "aegis-link", "rusqlite", "axum"]].concat(),
        ));
    }
    let mut broken = Vec::new();
    for (from, forbidden) in rules {
        assert!(graph.contains_key(from), "no crate `{from}`: correct the rules");
        for to in forbidden {
            broken.extend(chain(&graph, from, to).map(|path| path.join(" → ")));
        }
    }
    assert!(broken.is_empty(), "forbidden arrows:\n{}", broken.join("\n"));
}

#[test]
fn some_crates_are_reached_only_through_one_of_ours() {
    let graph = dependencies();
    for (dependency, only) in [
        ("rusqlite", "aegis-store"),
        ("aes-gcm", "aegisd"),
        ("axum", "aegisd"),
        ("yamux", "aegis-link"),
        ("smoltcp", "aegis-net"),
        ("fuse-backend-rs", "aegis-fs"),
        ("reqwest", "aegis-registry"),
        ("landlock", "aegis-vmm-worker"),
        ("seccompiler", "aegis-vmm-worker"),
    ] {
        let users: Vec<&str> = graph
            .iter()
            .filter(|(name, deps)| {
                deps.contains(dependency) && (name.starts_with("aegis") || *name == "xtask")
            })
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(users, [only], "users of {dependency}");
    }
}
