//! Archives of images that lie.

use aegis_image::{ImageError, Limits, host_architecture};
use serde_json::{Value, json};

use super::archives::*;
use super::stack::*;
use super::support::*;

/// Why an archive is refused; the store is as empty as before.
fn refused(archive: &[u8]) -> String {
    let home = Home::new();
    let error = home.store.load(archive, Some(&name("x"))).expect_err("the archive is refused");
    assert!(home.store.list().unwrap().is_empty());
    chain(&error)
}

fn one(manifest: &[u8]) -> Value {
    json!({ "manifests": [descriptor(MANIFEST, manifest)] })
}

#[test]
fn what_is_no_image_archive_is_named_so() {
    let error = refused(&Archive::new().file("etc/passwd", b"").finish());
    assert!(error.contains("`aegis image import` reads archives of root file systems"), "{error}");
    assert_eq!(refused(&[b'x'; 1024]), "not a tar archive");
    assert!(refused(b"").contains("truncated"));
    for (member, text) in [("manifest.json", "{"), ("manifest.json", "{}"), ("index.json", "[1")] {
        let error = refused(&Archive::new().file(member, text.as_bytes()).finish());
        assert!(error.starts_with(&format!("`{member}` of the image archive cannot be read: ")), "{error}");
    }
    let error = refused(&Archive::new().file("manifest.json", b"[]").finish());
    assert_eq!(error, "`manifest.json` of the image archive lists no image");
    let error = refused(&Archive::new().file("index.json", b"{}").finish());
    assert_eq!(error, "`index.json` of the image archive lists no image");
}

#[test]
fn an_archive_cut_anywhere_is_refused() {
    let (manifest, blobs) = oci_image(host_architecture(), &two_layers());
    let archive = oci_archive(&one(&manifest), &blobs);
    for cut in (0..archive.len() - 1024).step_by(457) {
        assert!(refused(&archive[..cut]).contains("truncated"), "{cut}");
    }
}

#[test]
fn paths_lead_nowhere_but_into_the_archive() {
    let home = Home::new();
    let canary = home.canary().display().to_string();
    for path in ["../canary", "/etc/passwd", canary.as_str(), "a/../../../canary"] {
        for list in [
            json!([{ "Config": path, "RepoTags": ["a"], "Layers": [] }]),
            json!([{ "Config": "c", "RepoTags": ["a"], "Layers": [path] }]),
        ] {
            let archive = Members::new()
                .file("c", config(&[sha256(b"untouched")]).to_string().as_bytes())
                .json("manifest.json", &list)
                .finish();
            let error = chain(&home.store.load(&archive[..], None).unwrap_err());
            assert_eq!(error, format!("`{path}` of the image archive is missing"));
        }
    }
    // Links to the host, and members that would be written through them.
    let linked = Members::new()
        .edit(|archive| {
            archive
                .pax(&[(b"linkpath", canary.as_bytes())])
                .symlink("layer.tar", "")
                .pax(&[(b"linkpath", canary.as_bytes())])
                .hard_link("c", "")
                .symlink("dir", "/")
                .file("dir/canary", b"overwritten")
        })
        .json("manifest.json", &json!([{ "Config": "c", "RepoTags": ["a"], "Layers": ["layer.tar"] }]))
        .finish();
    assert_eq!(
        chain(&home.store.load(&linked[..], None).unwrap_err()),
        "`c` of the image archive is missing"
    );
    for path in ["../canary", "blobs/../../canary"] {
        let error = chain(&home.store.load(&Archive::new().file(path, b"x").finish()[..], None).unwrap_err());
        assert_eq!(error, format!("archive entry `{path}`: `..` in a path"));
    }
    // Digests become file names.
    let bad = r#"{"manifests":[{"mediaType":"m","digest":"sha256:../../../canary","size":9}]}"#;
    let error = home.store.load(&Archive::new().file("index.json", bad.as_bytes()).finish()[..], None);
    assert!(chain(&error.unwrap_err()).contains("invalid digest"));
}

#[test]
fn links_in_circles_end() {
    let archive = Members::new()
        .edit(|archive| archive.symlink("a", "b").symlink("b", "a").symlink("self", "self"))
        .json("manifest.json", &json!([{ "Config": "a", "RepoTags": ["a"], "Layers": [] }]))
        .finish();
    assert_eq!(refused(&archive), "`a` of the image archive has more than 8 links on the way");
}

#[test]
fn blobs_must_be_what_they_are_called() {
    let (manifest, blobs) = oci_image(host_architecture(), &two_layers());
    let path = |blob: &[u8]| format!("blobs/sha256/{}", sha256(blob).hex());
    for (victim, blob) in blobs.iter().enumerate() {
        let build = |replacement: Option<&[u8]>| {
            let mut members = Members::new();
            for (i, blob) in blobs.iter().enumerate() {
                match (i == victim, replacement) {
                    (true, Some(other)) => members = members.file(&path(blob), other),
                    (true, None) => {}
                    (false, _) => members = members.blob(blob),
                }
            }
            members.json("index.json", &one(&manifest)).finish()
        };
        let at = path(blob);
        assert_eq!(refused(&build(None)), format!("`{at}` of the image archive is missing"));
        let mut other = blob.clone();
        *other.last_mut().unwrap() ^= 1;
        let expected = format!(
            "`{at}` of the image archive has the digest {}, but should have {}",
            sha256(&other),
            sha256(blob)
        );
        assert_eq!(refused(&build(Some(&other))), expected);
    }
    let mut short = one(&manifest);
    short["manifests"][0]["size"] = json!(3);
    assert!(refused(&oci_archive(&short, &blobs)).contains("bytes long, but should be 3"));
}

#[test]
fn a_layer_other_than_the_listed_one_is_refused_in_docker_archives_too() {
    let layers = two_layers();
    let list = |layers: &[&str]| json!([{ "Config": "c", "RepoTags": ["a"], "Layers": layers }]);
    let archive = |listed: &[&str]| {
        Members::new()
            .file("0", &layers[0])
            .file("1", &layers[1])
            .file("c", config(&[sha256(&layers[0]), sha256(&layers[1])]).to_string().as_bytes())
            .json("manifest.json", &list(listed))
            .finish()
    };
    let home = Home::new();
    home.store.load(&archive(&["0", "1"])[..], None).unwrap();
    let error = refused(&archive(&["1", "0"]));
    assert!(error.contains("cannot apply layer 1 of 2") && error.contains("but should be"), "{error}");
    assert_eq!(refused(&archive(&["0"])), "the image has 1 layers, but its configuration lists 2");
}

#[test]
fn documents_are_bounded_in_size_depth_and_number() {
    let huge = vec![b' '; (8 << 20) + 1];
    assert!(
        refused(&Archive::new().file("index.json", &huge).finish()).contains("larger than 8388608 bytes")
    );
    let quoted = format!(r#"{{"manifests":"{}"}}"#, "x".repeat(100_000));
    let error = refused(&Archive::new().file("index.json", quoted.as_bytes()).finish());
    assert!(error.len() < 400, "{} bytes of an error", error.len());
    let deep = "[".repeat(100_000);
    assert!(
        refused(&Archive::new().file("manifest.json", deep.as_bytes()).finish()).contains("cannot be read")
    );

    let (manifest, mut blobs) = oci_image(host_architecture(), &two_layers());
    let mut inner = descriptor(MANIFEST, &manifest);
    for _ in 0..6 {
        let index = json!({ "manifests": [inner] }).to_string().into_bytes();
        inner = descriptor(INDEX, &index);
        blobs.push(index);
    }
    let error = refused(&oci_archive(&json!({ "manifests": [inner] }), &blobs));
    assert!(error.ends_with("has more than 4 indices within each other"), "{error}");

    // Each of four levels lists the next one thirty times: 810,000 manifests in a few kilobytes.
    let (foreign, mut blobs) = oci_image("s390x", &[]);
    let mut inner = descriptor(MANIFEST, &foreign);
    for _ in 0..4 {
        let index = json!({ "manifests": vec![inner; 30] }).to_string().into_bytes();
        inner = descriptor(INDEX, &index);
        blobs.push(index);
    }
    let error = refused(&oci_archive(&json!({ "manifests": [inner] }), &blobs));
    assert!(error.ends_with("has more than 2000 manifests beside it"), "{error}");
}

#[test]
fn what_is_not_an_image_of_layers_is_refused() {
    let (manifest, blobs) = oci_image(host_architecture(), &two_layers());
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&manifest).unwrap();
        edit(&mut value);
        let manifest = value.to_string().into_bytes();
        refused(&oci_archive(&one(&manifest), &[&blobs[1..], std::slice::from_ref(&manifest)].concat()))
    };
    let error = edited(&|m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json"));
    assert!(
        error.ends_with("has the unsupported type `application/vnd.cncf.helm.config.v1+json`"),
        "{error}"
    );
    let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    assert!(edited(&|m| m["layers"][0]["mediaType"] = json!(encrypted)).contains(encrypted));
    assert!(edited(&|m| m["manifests"] = json!([])).ends_with("is a manifest and an index at the same time"));
    assert!(
        edited(&|m| *m = json!({ "layers": [] })).ends_with("is neither a manifest nor an index of images")
    );
}

#[test]
fn the_whole_archive_is_bounded() {
    let limits = Limits { max_bytes: 1 << 20, max_entries: 50, ..Limits::default() };
    let home = Home::with_limits(limits);
    let bomb = gzip(&Archive::new().file("blobs/sha256/x", &vec![0; 2 << 20]).finish());
    let error = home.store.load(&bomb[..], None).unwrap_err();
    assert!(matches!(error, ImageError::Limit { what: "bytes", .. }), "{error}");
    let sparse = Archive::new()
        .pax(&[(b"GNU.sparse.map", b""), (b"GNU.sparse.size", b"9000000000")])
        .file("hole", b"")
        .finish();
    assert!(matches!(home.store.load(&sparse[..], None), Err(ImageError::Limit { .. })));
    let many = (0..60).fold(Archive::new(), |archive, i| archive.file(&i.to_string(), b"")).finish();
    assert!(matches!(home.store.load(&many[..], None), Err(ImageError::Limit { what: "entries", .. })));
}
