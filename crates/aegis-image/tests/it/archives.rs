//! Archives of images: those of others in, ours out and in again.

use std::collections::BTreeMap;
use std::io::Read as _;

use aegis_image::{Compression, ImageError, ImageInfo, host_architecture};
use aegis_types::Digest;
use serde_json::{Value, json};

use super::stack::*;
use super::support::*;

/// An archive under construction whose members may be anything.
#[derive(Default)]
pub(crate) struct Members(Archive);

impl Members {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        Members(self.0.file(path, content))
    }

    pub(crate) fn json(self, path: &str, value: &Value) -> Self {
        self.file(path, value.to_string().as_bytes())
    }

    /// Adds a blob as OCI layouts have them.
    pub(crate) fn blob(self, content: &[u8]) -> Self {
        self.file(&format!("blobs/sha256/{}", sha256(content).hex()), content)
    }

    pub(crate) fn edit(self, edit: impl FnOnce(Archive) -> Archive) -> Self {
        Members(edit(self.0))
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.finish()
    }
}

pub(crate) fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha256(content), "size": content.len() })
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// An OCI image of these layers: its manifest, and all its blobs.
pub(crate) fn oci_image(architecture: &str, layers: &[Vec<u8>]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let diff_ids: Vec<Digest> = layers.iter().map(|tar| sha256(tar)).collect();
    let mut config = config(&diff_ids);
    config["architecture"] = json!(architecture);
    let config = config.to_string().into_bytes();
    let packed: Vec<Vec<u8>> = layers.iter().map(|tar| gzip(tar)).collect();
    let listed: Vec<Value> = packed.iter().map(|blob| descriptor(&format!("{TAR}+gzip"), blob)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config), "layers": listed,
    });
    let manifest = manifest.to_string().into_bytes();
    let blobs = [vec![manifest.clone(), config], packed].concat();
    (manifest, blobs)
}

pub(crate) fn oci_archive(index: &Value, blobs: &[Vec<u8>]) -> Vec<u8> {
    let members = Members::new().json("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }));
    let members = blobs.iter().fold(members, |members, blob| members.blob(blob));
    members.json("index.json", index).finish()
}

pub(crate) fn two_layers() -> Vec<Vec<u8>> {
    vec![
        Archive::new().file("etc/issue", b"old").file("gone", b"").finish(),
        Archive::new().file("etc/issue", b"new").file(".wh.gone", b"").finish(),
    ]
}

fn names(images: &[ImageInfo]) -> Vec<String> {
    images.iter().map(|image| image.name.to_string()).collect()
}

fn looks_right(image: &ImageInfo) {
    let listing = read_image(&image.path);
    assert_eq!(paths(&listing), ["/", "/etc", "/etc/issue"]);
    assert_eq!(kind(&listing, "/etc/issue"), &Kind::File(b"new".to_vec()));
    assert_eq!(image.config.workdir.as_deref(), Some("/srv"));
    assert_eq!(image.layers.len(), 2);
}

/// As Docker has written them for years: a directory for each layer, and a link where one occurs again.
fn docker_archive(tags: &[&str]) -> Vec<u8> {
    let layers = two_layers();
    let diff_ids: Vec<_> = [&layers[0], &layers[0], &layers[1]].map(|tar| sha256(tar)).to_vec();
    let config = config(&diff_ids).to_string().into_bytes();
    Members::new()
        .edit(|archive| archive.dir("aaa").file("aaa/VERSION", b"1.0").file("aaa/layer.tar", &layers[0]))
        .edit(|archive| archive.dir("bbb").symlink("bbb/layer.tar", "../aaa/layer.tar"))
        .file("ccc/layer.tar", &gzip(&layers[1]))
        .file("cafe.json", &config)
        .json(
            "manifest.json",
            &json!([{
                "Config": "cafe.json", "RepoTags": tags,
                "Layers": ["aaa/layer.tar", "bbb/layer.tar", "./ccc/layer.tar"],
            }]),
        )
        .finish()
}

#[test]
fn docker_archives_are_loaded_under_all_their_names() {
    let home = Home::new();
    let archive = docker_archive(&["tools:v1", "localhost:5000/tools:latest"]);
    let loaded = home.store.load(&archive[..], None).unwrap();
    assert_eq!(names(&loaded), ["tools:v1", "localhost:5000/tools"]);
    assert_eq!(loaded[0].digest, loaded[1].digest);
    assert_eq!(loaded[0].layers.len(), 3);
    let listing = read_image(&loaded[0].path);
    assert_eq!(paths(&listing), ["/", "/etc", "/etc/issue"]);
    assert_eq!(home.store.list().unwrap().len(), 2);

    let home = Home::new();
    let loaded = home.store.load(&zstd(&archive)[..], Some(&name("mine"))).unwrap();
    assert_eq!(names(&loaded), ["mine"], "the given name counts");
    for tags in [json!(null), json!(["<none>:<none>"])] {
        let home = Home::new();
        let text = Members::new().json(
            "manifest.json",
            &json!([{
                "Config": "c", "RepoTags": tags, "Layers": [],
            }]),
        );
        let archive = text.file("c", config(&[]).to_string().as_bytes()).finish();
        assert!(matches!(home.store.load(&archive[..], None), Err(ImageError::Unnamed)));
        assert_eq!(names(&home.store.load(&archive[..], Some(&name("x"))).unwrap()), ["x"]);
    }
}

#[test]
fn hard_links_within_an_archive_are_followed() {
    let home = Home::new();
    let layer = two_layers().remove(0);
    let config = config(&[sha256(&layer)]).to_string().into_bytes();
    let archive = Members::new()
        .file("a/layer.tar", &layer)
        .edit(|archive| archive.hard_link("b/layer.tar", "a/layer.tar").file("c", &config))
        .json("manifest.json", &json!([{ "Config": "c", "RepoTags": ["a"], "Layers": ["b/layer.tar"] }]))
        .finish();
    home.store.load(&archive[..], None).unwrap();
}

#[test]
fn oci_archives_give_the_image_for_this_machine() {
    let host = host_architecture();
    let (ours, our_blobs) = oci_image(host, &two_layers());
    let (foreign, foreign_blobs) = oci_image("s390x", &[Archive::new().file("wrong", b"").finish()]);
    let platform = |mut descriptor: Value, architecture: &str| {
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor
    };
    let attestation = platform(descriptor(MANIFEST, b"not in the archive"), "unknown");
    let list = [
        attestation,
        platform(descriptor(MANIFEST, &foreign), "s390x"),
        platform(descriptor(MANIFEST, &ours), host),
    ];
    let nested = json!({ "schemaVersion": 2, "manifests": list }).to_string().into_bytes();
    let mut top = descriptor(INDEX, &nested);
    top["annotations"] = json!({
        "io.containerd.image.name": "docker.io/library/python:3.12",
        "org.opencontainers.image.ref.name": "3.12",
    });

    // The blobs of other platforms need not be there, as when only one was pulled.
    let home = Home::new();
    let index = json!({ "schemaVersion": 2, "manifests": [top] });
    let archive = oci_archive(&index, &[our_blobs.clone(), vec![nested]].concat());
    let loaded = home.store.load(&archive[..], None).unwrap();
    assert_eq!(names(&loaded), ["python:3.12"]);
    assert_eq!(loaded[0].manifest, Some(sha256(&ours)));
    looks_right(&loaded[0]);

    // Without platforms in the index, the configurations say.
    let plain = json!({ "manifests": [descriptor(MANIFEST, &foreign), descriptor(MANIFEST, &ours)] });
    let archive = oci_archive(&plain, &[foreign_blobs.clone(), our_blobs].concat());
    let loaded = home.store.load(&archive[..], Some(&name("plain"))).unwrap();
    looks_right(&loaded[0]);

    let only = json!({ "manifests": [descriptor(MANIFEST, &foreign)] });
    let error = home.store.load(&oci_archive(&only, &foreign_blobs)[..], Some(&name("f"))).unwrap_err();
    let expected = format!("the image is made for linux/s390x, but this machine runs linux/{host}");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_reference_that_is_only_a_tag_names_nothing() {
    let (manifest, blobs) = oci_image(host_architecture(), &two_layers());
    let archive = |reference: &str| {
        let mut descriptor = descriptor(MANIFEST, &manifest);
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
        oci_archive(&json!({ "manifests": [descriptor] }), &blobs)
    };
    let home = Home::new();
    assert!(matches!(home.store.load(&archive("latest")[..], None), Err(ImageError::Unnamed)));
    let loaded = home.store.load(&archive("quay.io/team/app:1")[..], None).unwrap();
    assert_eq!(names(&loaded), ["quay.io/team/app:1"]);
}

/// As Docker writes now: both forms, with the names in `manifest.json`.
#[test]
fn archives_in_both_forms_take_the_names_of_one_and_the_manifests_of_the_other() {
    let (manifest, blobs) = oci_image(host_architecture(), &two_layers());
    let (second, more) = oci_image(host_architecture(), &[Archive::new().file("other", b"").finish()]);
    let blob = |content: &[u8]| format!("blobs/sha256/{}", sha256(content).hex());
    let members = [&blobs[..], &more].concat().iter().fold(Members::new(), |members, b| members.blob(b));
    let archive = members
        .json(
            "index.json",
            &json!({
                "manifests": [descriptor(MANIFEST, &manifest), descriptor(MANIFEST, &second)],
            }),
        )
        .json(
            "manifest.json",
            &json!([
                { "Config": blob(&blobs[1]), "RepoTags": ["app:1", "app:latest"], "Layers": [] },
                { "Config": blob(&more[1]), "RepoTags": ["other:1"], "Layers": [] },
            ]),
        )
        .finish();
    let home = Home::new();
    let loaded = home.store.load(&archive[..], None).unwrap();
    assert_eq!(names(&loaded), ["app", "app:1", "other:1"]);
    assert_eq!(loaded[1].manifest, Some(sha256(&manifest)));
    looks_right(&loaded[1]);

    let home = Home::new();
    assert_eq!(names(&home.store.load(&archive[..], Some(&name("other:1"))).unwrap()), ["other:1"]);
    let error = home.store.load(&archive[..], Some(&name("none"))).unwrap_err().to_string();
    let expected =
        "the archive has 2 images, and none of them is named `none` (names in it: app, app:1, other:1)";
    assert_eq!(error, expected);
}

fn members_of(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut members = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert!(members.insert(path.clone(), content).is_none(), "{path} is there once");
    }
    members
}

#[test]
fn a_saved_image_is_consistent_in_both_forms() {
    let home = Home::new();
    let layers = two_layers();
    let packed = vec![
        home.layer(&layers[0], Compression::Gzip),
        home.layer(&layers[1], Compression::Zstd),
        home.layer(&layers[0], Compression::Gzip),
        home.layer(&layers[1], Compression::None),
    ];
    let hold = home.store.hold().unwrap();
    let description = home.describe(packed);
    home.store.build(&hold, &name("ghcr.io/team/app:1"), &description, &|_, _| {}).unwrap();
    let mut archive = Vec::new();
    home.store.save(&name("ghcr.io/team/app:1"), &mut archive).unwrap();
    let members = members_of(&archive);
    let json = |path: &str| serde_json::from_slice::<Value>(&members[path]).unwrap();
    let path = |digest: &Value| {
        let path = format!("blobs/{}", digest.as_str().unwrap().replace(':', "/"));
        assert_eq!(json!(sha256(&members[&path])), *digest);
        path
    };
    assert_eq!(json("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }));
    let listed = &json("index.json")["manifests"][0];
    assert_eq!(listed["annotations"]["io.containerd.image.name"], "ghcr.io/team/app:1");
    assert_eq!(listed["annotations"]["org.opencontainers.image.ref.name"], "1");
    let manifest = json(&path(&listed["digest"]));
    assert_eq!(members[&path(&manifest["config"]["digest"])], description.config);
    let types: Vec<_> = manifest["layers"].as_array().unwrap().iter().map(|l| &l["mediaType"]).collect();
    assert_eq!(types, [&format!("{TAR}+gzip"), &format!("{TAR}+zstd"), &format!("{TAR}+gzip"), TAR]);
    let layers: Vec<_> = manifest["layers"].as_array().unwrap().iter().map(|l| path(&l["digest"])).collect();
    let docker = json("manifest.json");
    assert_eq!(docker[0]["RepoTags"], json!(["ghcr.io/team/app:1"]));
    assert_eq!(docker[0]["Layers"], json!(layers));
    assert_eq!(docker[0]["Config"], json!(path(&manifest["config"]["digest"])));
    assert_eq!(members.len(), 3 + 2 + 3, "equal layers are there once");

    let mut again = Vec::new();
    home.store.save(&name("ghcr.io/team/app:1"), &mut again).unwrap();
    assert_eq!(archive, again, "the same image gives the same archive");
}

#[test]
fn what_is_saved_can_be_loaded_elsewhere() {
    let home = Home::new();
    let built = home.build("python:3.12", &two_layers()).unwrap();
    let imported = home.store.import(&name("plain"), &gzip(&two_layers()[0])[..]).unwrap();
    for original in [built, imported] {
        let mut archive = Vec::new();
        home.store.save(&original.name, &mut archive).unwrap();
        let elsewhere = Home::new();
        let loaded = elsewhere.store.load(&archive[..], None).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!((&loaded[0].name, &loaded[0].digest), (&original.name, &original.digest));
        assert_eq!((&loaded[0].layers, &loaded[0].config.env), (&original.layers, &original.config.env));
        let mut again = Vec::new();
        elsewhere.store.save(&original.name, &mut again).unwrap();
        assert_eq!(archive, again);
        // And by the other form alone.
        let members = members_of(&archive);
        let docker = members.iter().filter(|(path, _)| *path != "index.json" && *path != "oci-layout");
        let docker = docker.fold(Members::new(), |all, (path, content)| all.file(path, content)).finish();
        let third = Home::new();
        assert_eq!(third.store.load(&docker[..], None).unwrap()[0].digest, original.digest);
        let mut thrice = Vec::new();
        third.store.save(&original.name, &mut thrice).unwrap();
        assert_eq!(archive, thrice);
    }
}

#[test]
fn what_cannot_be_saved_says_why() {
    let home = Home::new();
    let save = |image: &str| home.store.save(&name(image), std::io::sink()).unwrap_err();
    assert_eq!(save("none").to_string(), "no image named `none`");
    let info = home.build("a", &two_layers()).unwrap();
    let blob = home.store.blob_path(&info.layers[1]);
    let content = std::fs::read(&blob).unwrap();
    std::fs::write(&blob, [&content[..content.len() - 1], b"x"].concat()).unwrap();
    assert!(matches!(save("a"), ImageError::MissingBlob { .. }), "damaged");
    std::fs::remove_file(&blob).unwrap();
    assert!(matches!(save("a"), ImageError::MissingBlob { .. }));
    // Loading brings it back.
    let (_, blobs) = oci_image(host_architecture(), &two_layers());
    assert!(blobs.contains(&content));
    let (manifest, blobs) = oci_image(host_architecture(), &two_layers());
    let archive = oci_archive(&json!({ "manifests": [descriptor(MANIFEST, &manifest)] }), &blobs);
    home.store.load(&archive[..], Some(&name("b"))).unwrap();
    home.store.save(&name("a"), std::io::sink()).unwrap();

    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    assert!(matches!(home.store.save(&name("a"), Full), Err(ImageError::Write(_))));
}
