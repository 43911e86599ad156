//! Resolving names: manifests, indices and configurations.

use aegis_registry::{LayerMedia, Problem, RegistryError};
use aegis_types::{ImageConfig, OciConfig};
use serde_json::{Value, json};

use crate::content::*;
use crate::server::{Body, Reply, Server};

#[tokio::test]
async fn an_image_is_resolved_by_tag_and_by_digest() {
    let mut content = Content::default();
    let manifest = content.image(Some("v1"), "amd64", &[b"one", b"two"]);
    let server = content.serve().await;
    let client = Client::new();
    let resolved = client.resolve(&server, ":v1").await.unwrap();
    assert_eq!(resolved.manifest.as_str(), manifest["digest"]);
    assert_eq!(resolved.architecture, "amd64");
    let config: OciConfig = serde_json::from_slice(&resolved.config).unwrap();
    assert_eq!(ImageConfig::from_oci(config).unwrap().env["A"], "b");
    let layers: Vec<_> =
        resolved.layers.iter().map(|l| (l.digest.clone(), l.size_bytes, l.diff_id.clone())).collect();
    assert_eq!(layers, [(digest(b"one"), 3, digest(&[0])), (digest(b"two"), 3, digest(&[1]))]);
    let pinned = format!("@{}", resolved.manifest);
    assert_eq!(client.resolve(&server, &pinned).await.unwrap(), resolved);
    for request in server.requests() {
        assert_eq!(request.method, "GET");
        assert!(request.header("user-agent").unwrap().starts_with("aegis/"));
        assert_eq!(request.authorization(), None);
    }
    let accept = server.requests_for("manifests/v1")[0].header("accept").unwrap().to_owned();
    for kind in [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST] {
        assert!(accept.contains(kind), "{accept}");
    }
}

#[tokio::test]
async fn every_kind_of_layer_is_known() {
    let mut content = Content::default();
    let kinds = [
        (OCI_GZIP, LayerMedia::TarGzip),
        ("application/vnd.oci.image.layer.v1.tar+zstd", LayerMedia::TarZstd),
        ("application/vnd.oci.image.layer.v1.tar", LayerMedia::Tar),
        (DOCKER_GZIP, LayerMedia::TarGzip),
        ("application/vnd.docker.image.rootfs.diff.tar", LayerMedia::Tar),
    ];
    let config = content.config("amd64", kinds.len());
    let layers: Vec<_> = kinds.iter().map(|(kind, _)| descriptor(kind, kind.as_bytes())).collect();
    // As Docker writes it: its types, all on one line, no type in the document.
    let manifest =
        json!({"schemaVersion": 2, "config": descriptor(DOCKER_CONFIG, &config), "layers": layers});
    content.document(Some("t"), DOCKER_MANIFEST, &manifest);
    let resolved = Client::new().resolve(&content.serve().await, ":t").await.unwrap();
    let media: Vec<_> = resolved.layers.iter().map(|layer| layer.media_type).collect();
    assert_eq!(media, kinds.map(|(_, media)| media));
}

fn index(content: &mut Content, tag: &str, media_type: &str, entries: &[(Value, &str, &str)]) -> Value {
    let entries: Vec<_> = entries
        .iter()
        .map(|(descriptor, os, architecture)| {
            let mut entry = descriptor.clone();
            entry["platform"] = json!({"os": os, "architecture": architecture});
            entry
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
    content.document(Some(tag), media_type, &index)
}

#[tokio::test]
async fn an_index_leads_to_the_image_of_the_machine() {
    for kind in [OCI_INDEX, DOCKER_LIST] {
        let mut content = Content::default();
        let amd64 = content.image(None, "amd64", &[b"amd64"]);
        let arm64 = content.image(None, "arm64", &[b"arm64"]);
        let attestation = content.image(None, "unknown", &[]);
        let entries = [
            (attestation, "unknown", "unknown"),
            (arm64.clone(), "linux", "arm64"),
            (amd64.clone(), "linux", "amd64"),
        ];
        let outer = index(&mut content, "multi", kind, &entries);
        let server = content.serve().await;
        let client = Client::new();
        for (architecture, expected) in [("x86_64", &amd64), ("amd64", &amd64), ("aarch64", &arm64)] {
            let resolved = client.registry.resolve(&name(&server, ":multi"), architecture).await.unwrap();
            assert_eq!(resolved.manifest.as_str(), expected["digest"]);
        }
        // A name can be pinned to the index as well.
        let pinned = format!(":multi@{}", outer["digest"].as_str().unwrap());
        assert_eq!(client.resolve(&server, &pinned).await.unwrap().manifest.as_str(), amd64["digest"]);
        let error = client.registry.resolve(&name(&server, ":multi"), "riscv64").await.unwrap_err();
        let said = text(&error);
        assert!(
            said.contains("is for linux/arm64, linux/amd64, and this machine needs linux/riscv64"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn an_image_for_another_machine_names_both() {
    let mut content = Content::default();
    content.image(Some("t"), "s390x", &[]);
    let error = Client::new().resolve(&content.serve().await, ":t").await.unwrap_err();
    assert!(text(&error).contains("is for linux/s390x, and this machine needs linux/amd64"), "{error}");
}

#[tokio::test]
async fn indices_within_indices_end() {
    let mut content = Content::default();
    let image = content.image(None, "amd64", &[]);
    let inner = index(&mut content, "1", OCI_INDEX, &[(image, "linux", "amd64")]);
    let inner = index(&mut content, "2", OCI_INDEX, &[(inner, "linux", "amd64")]);
    let inner = index(&mut content, "3", OCI_INDEX, &[(inner, "linux", "amd64")]);
    index(&mut content, "4", OCI_INDEX, &[(inner, "linux", "amd64")]);
    let server = content.serve().await;
    let client = Client::new();
    client.resolve(&server, ":3").await.unwrap();
    let error = client.resolve(&server, ":4").await.unwrap_err();
    assert!(matches!(error, RegistryError::Invalid { document: "index", .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_no_image_is_refused_by_its_kind() {
    let mut content = Content::default();
    let config = content.config("amd64", 1);
    let helm = json!({"schemaVersion": 2, "layers": [],
        "config": descriptor("application/vnd.cncf.helm.config.v1+json", &config)});
    content.document(Some("helm"), OCI_MANIFEST, &helm);
    let old = json!({"schemaVersion": 1, "name": "r", "fsLayers": []});
    content.document(Some("old"), "application/vnd.docker.distribution.manifest.v1+prettyjws", &old);
    let wasm = json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG, &config),
        "layers": [descriptor("application/wasm", b"x")]});
    content.document(Some("wasm"), OCI_MANIFEST, &wasm);
    let server = content.serve().await;
    for (tag, says) in [(":helm", "vnd.cncf.helm"), (":old", "schema 1"), (":wasm", "application/wasm")] {
        let error = Client::new().resolve(&server, tag).await.unwrap_err();
        assert!(
            matches!(error, RegistryError::NotAnImage { .. }) && error.to_string().contains(says),
            "{error}"
        );
    }
}

#[tokio::test]
async fn manifests_that_contradict_themselves_are_refused() {
    let mut content = Content::default();
    let config = content.config("amd64", 1);
    let manifest = |layers: Value| json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG, &config), "layers": layers});
    content.document(Some("count"), OCI_MANIFEST, &manifest(json!([])));
    let mut huge = descriptor(OCI_GZIP, b"x");
    huge["size"] = json!(u64::MAX);
    content.document(Some("huge"), OCI_MANIFEST, &manifest(json!([huge])));
    content.document(Some("json"), OCI_MANIFEST, &json!({"schemaVersion": 2, "config": 5}));
    content.document(Some("type"), OCI_INDEX, &manifest(json!([])));
    let server = content.serve().await;
    for tag in [":count", ":huge", ":json", ":type"] {
        let error = Client::new().resolve(&server, tag).await.unwrap_err();
        assert!(matches!(error, RegistryError::Invalid { document: "manifest", .. }), "{tag}: {error:?}");
    }
}

#[tokio::test]
async fn a_broken_configuration_is_refused() {
    for config in ["", "[]", "{}", r#"{"rootfs": {"diff_ids": ["sha256:x"]}}"#] {
        let mut content = Content::default();
        content.blob(config.as_bytes());
        let manifest =
            json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG, config.as_bytes()), "layers": []});
        content.document(Some("t"), OCI_MANIFEST, &manifest);
        let error = Client::new().resolve(&content.serve().await, ":t").await.unwrap_err();
        assert!(
            matches!(error, RegistryError::Invalid { document: "configuration", .. }),
            "{config}: {error:?}"
        );
    }
}

#[tokio::test]
async fn other_content_than_was_asked_for_is_refused() {
    let mut content = Content::default();
    let manifest = content.image(Some("t"), "amd64", &[]);
    let good = content.clone();
    // For everything that has a digest: something of the same length, or of another one.
    for (of, longer) in
        [("manifests/sha256", false), ("manifests/sha256", true), ("blobs/", false), ("blobs/", true)]
    {
        let content = good.clone();
        let server = Server::start(move |request, _| {
            let mut reply = content.answer(request);
            if request.target.contains(of)
                && let Body::Whole(bytes) = &mut reply.body
            {
                if longer { bytes.push(b' ') } else { bytes[0] = b' ' }
            }
            reply
        })
        .await;
        let reference = format!("@{}", manifest["digest"].as_str().unwrap());
        let problem = problem(Client::new().resolve(&server, &reference).await);
        let expected = if longer && of == "blobs/" {
            matches!(problem, Problem::WrongSize { .. })
        } else {
            matches!(problem, Problem::WrongDigest { .. })
        };
        assert!(expected, "{of}: {problem:?}");
    }
}

#[tokio::test]
async fn a_tag_has_the_digest_that_the_registry_says() {
    let mut content = Content::default();
    content.image(Some("t"), "amd64", &[]);
    let other = digest(b"other").to_string();
    let server =
        Server::start(move |request, _| content.answer(request).header("docker-content-digest", &other))
            .await;
    let problem = problem(Client::new().resolve(&server, ":t").await);
    assert!(matches!(problem, Problem::WrongDigest { .. }), "{problem:?}");
}

#[tokio::test]
async fn answers_without_an_end_are_cut_off() {
    for body in ["announced", "endless"] {
        let server = Server::start(move |request, _| match (&*request.target, body) {
            ("/v2/", _) => Reply::ok("{}"),
            (_, "announced") => Reply::new(200).with(Body::Cut(vec![b' '; 5 << 20], 10)),
            _ => Reply::new(200).with(Body::Endless(vec![b' '; 1 << 16])),
        })
        .await;
        let problem = problem(Client::new().resolve(&server, ":t").await);
        assert!(matches!(problem, Problem::TooLarge { .. }), "{problem:?}");
    }
}

#[tokio::test]
async fn an_error_without_an_end_is_that_error() {
    let server = Server::start(|_, _| Reply::new(404).with(Body::Endless(vec![b'x'; 1 << 16]))).await;
    let problem = problem(Client::new().resolve(&server, ":t").await);
    assert!(matches!(problem, Problem::NotFound { said: None }), "{problem:?}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let server = Server::start(|request, _| {
        let reply = Reply::ok("{}");
        if request.target == "/v2/" { reply } else { reply.header("x", &"y".repeat(4 << 20)) }
    })
    .await;
    let many = Server::start(|request, _| {
        let mut reply = Reply::ok("{}");
        for i in 0..if request.target == "/v2/" { 0 } else { 5000 } {
            reply = reply.header(&format!("x-{i}"), "y");
        }
        reply
    })
    .await;
    for server in [server, many] {
        let problem = problem(Client::new().resolve(&server, ":t").await);
        assert!(matches!(problem, Problem::Interrupted { .. }), "{problem:?}");
    }
}

#[tokio::test]
async fn what_was_compressed_on_its_way_is_refused() {
    let mut content = Content::default();
    content.image(Some("t"), "amd64", &[]);
    let server = Server::start(move |request, _| {
        assert_eq!(request.header("accept-encoding"), Some("identity"));
        content.answer(request).header("content-encoding", "gzip")
    })
    .await;
    let problem = problem(Client::new().resolve(&server, ":t").await);
    assert!(matches!(problem, Problem::Malformed(_)), "{problem:?}");
}

#[tokio::test]
async fn an_image_that_is_not_there_says_so() {
    let server = Content::default().serve().await;
    let error = Client::new().resolve(&server, ":nope").await.unwrap_err();
    let said = text(&error);
    for part in [
        "cannot get the manifest of `",
        "/r:nope`",
        "it is not there (404): manifest unknown",
        "check the name",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test]
async fn no_registry_says_so() {
    let server = Content::default().serve().await;
    let gone = name(&server, ":t");
    drop(server);
    // The port may be taken by now; whoever has it is no registry with this image.
    let error = Client::new().registry.resolve(&gone, "amd64").await.unwrap_err();
    assert!(matches!(error, RegistryError::Request { .. }), "{error:?}");
}
