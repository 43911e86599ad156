//! Manifests and indices: what a registry says an image consists of.
//!
//! Read are those of the OCI image specification 1.1 and of Docker's image manifest version 2, schema 2.

use aegis_types::Digest;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::platform::Platform;
use crate::resolve::LayerMedia;
use crate::text::printable;

/// Everything that is read, for the header `Accept`. What is not in it, registries may convert or refuse.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Bytes of one manifest or index. The distribution specification asks registries to take at least this much.
pub(crate) const BYTES_MAX: u64 = 4 << 20;
/// Layers of one image. Docker makes 127 at most; other builders make more.
const LAYERS_MAX: usize = 1000;
/// Entries of one index.
const ENTRIES_MAX: usize = 1000;
/// Platforms that an error lists.
const SHOWN_MAX: usize = 20;

const INDICES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// Why a document is no image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is something else, which is no fault of it.
    Other(String),
    /// It breaks the rules.
    Invalid(String),
}

/// What a document is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Manifest {
    /// A list of manifests.
    Index(Vec<Descriptor>),
    /// An image for one platform.
    Image { config: Descriptor, layers: Vec<Descriptor> },
}

/// A reference from one document to another, or to a layer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u32>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<IgnoredAny>,
}

/// Reads a document that came with this `Content-Type`.
pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, Refusal> {
    let invalid = |why: &str| Err(Refusal::Invalid(why.to_owned()));
    let content_type = content_type.map(essence).filter(|kind| is_specific(kind));
    if content_type.as_deref().is_some_and(|kind| kind.starts_with(SCHEMA_1)) {
        return Err(schema_1());
    }
    let document: Document =
        serde_json::from_slice(bytes).map_err(|e| Refusal::Invalid(printable(&e.to_string())))?;
    if document.schema_version == Some(1) || document.fs_layers.is_some() {
        return Err(schema_1());
    }
    if document.schema_version != Some(2) {
        return invalid("its schema version is not 2");
    }
    // Of two that disagree, different programs would believe different ones, and see different images.
    let kind = match (document.media_type, content_type) {
        (Some(said), Some(sent)) if said != sent => {
            return invalid(&format!(
                "it is sent as `{}` and says that it is `{}`",
                printable(&sent),
                printable(&said)
            ));
        }
        (said, sent) => said.or(sent),
    };
    let (is_index, is_image) = match kind.as_deref() {
        Some(kind) => (INDICES.contains(&kind), MANIFESTS.contains(&kind)),
        None => (document.manifests.is_some(), document.config.is_some()),
    };
    match (document.manifests, document.config, document.layers) {
        _ if !is_index && !is_image => match kind {
            Some(kind) => Err(Refusal::Other(format!("is of the type `{}`, not an image", printable(&kind)))),
            None => invalid("it is neither a manifest nor an index"),
        },
        (Some(manifests), None, None) if is_index => {
            if manifests.len() > ENTRIES_MAX {
                return invalid(&format!("it has more than {ENTRIES_MAX} entries"));
            }
            Ok(Manifest::Index(manifests))
        }
        (None, Some(config), layers) if is_image => image(config, layers, document.artifact_type),
        _ => invalid("its members are not those of its type"),
    }
}

fn image(
    config: Descriptor,
    layers: Option<Vec<Descriptor>>,
    artifact_type: Option<String>,
) -> Result<Manifest, Refusal> {
    if !CONFIGS.contains(&config.media_type.as_str()) {
        let kind = artifact_type.filter(|kind| !kind.is_empty()).unwrap_or(config.media_type);
        return Err(Refusal::Other(format!(
            "is an artifact of the type `{}`, not an image",
            printable(&kind)
        )));
    }
    let layers = layers.unwrap_or_default();
    if layers.len() > LAYERS_MAX {
        return Err(Refusal::Invalid(format!("it has more than {LAYERS_MAX} layers")));
    }
    Ok(Manifest::Image { config, layers })
}

fn schema_1() -> Refusal {
    Refusal::Other(
        "is in the format schema 1, which is no longer supported: pull and push it again with a current Docker"
            .to_owned(),
    )
}

/// A media type without its parameters.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether a `Content-Type` says more than that it is a file. Simple servers of files know no better.
fn is_specific(kind: &str) -> bool {
    !matches!(
        kind,
        "" | "application/json" | "text/plain" | "application/octet-stream" | "binary/octet-stream"
    )
}

/// The entry of an index that a machine should use, or what there is instead.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    machine: &Platform,
) -> Result<&'a Descriptor, Vec<String>> {
    let named = |entry: &'a Descriptor| entry.platform.as_ref().filter(|platform| !platform.is_unknown());
    let fitting = entries.iter().filter_map(|entry| Some((entry, named(entry)?)));
    let fitting = fitting.filter(|(_, platform)| platform.runs_on(machine));
    if let Some((entry, _)) = fitting.min_by_key(|(_, platform)| platform.level()) {
        return Ok(entry);
    }
    // An index may leave out the platform of its only image, which its configuration says as well.
    if let [entry] = entries
        && entry.platform.is_none()
    {
        return Ok(entry);
    }
    let mut offered: Vec<String> = Vec::new();
    for platform in entries.iter().filter_map(named).map(Platform::to_string) {
        if offered.len() == SHOWN_MAX {
            offered.push("…".to_owned());
            break;
        }
        if !offered.contains(&platform) {
            offered.push(platform);
        }
    }
    if offered.is_empty() {
        offered.push("no platform".to_owned());
    }
    Err(offered)
}

/// How a layer is packed, by its media type. Those that registries should not distribute are read where one does.
pub(crate) fn layer_media(media_type: &str) -> Result<LayerMedia, Refusal> {
    Ok(match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => LayerMedia::Tar,
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => LayerMedia::TarGzip,
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => LayerMedia::TarZstd,
        encrypted if encrypted.ends_with("+encrypted") => {
            return Err(Refusal::Other("has encrypted layers, which are not supported".to_owned()));
        }
        other => {
            let why = format!("has a layer of the type `{}`, which is not supported", printable(other));
            return Err(Refusal::Other(why));
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType": "{media_type}", "digest": "sha256:{HEX}", "size": 5}}"#)
    }

    fn read(json: &str, content_type: Option<&str>) -> Result<Manifest, Refusal> {
        parse(json.as_bytes(), content_type)
    }

    fn image_with(config: &str) -> String {
        format!(r#"{{"schemaVersion": 2, "config": {}, "layers": []}}"#, descriptor(config))
    }

    #[test]
    fn the_type_is_that_of_the_header_or_of_the_document() {
        let index = r#"{"schemaVersion": 2, "manifests": []}"#;
        for kind in [
            Some(INDICES[0]),
            Some(INDICES[1]),
            None,
            Some("application/json"),
            Some("text/plain; charset=utf-8"),
        ] {
            assert_eq!(read(index, kind), Ok(Manifest::Index(vec![])), "{kind:?}");
        }
        for kind in [
            Some(MANIFESTS[0]),
            Some(MANIFESTS[1]),
            None,
            Some("APPLICATION/vnd.oci.image.manifest.v1+json; x=y"),
        ] {
            assert!(matches!(read(&image_with(CONFIGS[0]), kind), Ok(Manifest::Image { .. })), "{kind:?}");
        }
    }

    #[test]
    fn a_document_that_can_be_read_in_two_ways_is_refused() {
        let said = format!(r#"{{"schemaVersion": 2, "mediaType": "{}", "manifests": []}}"#, INDICES[0]);
        assert!(matches!(read(&said, Some(MANIFESTS[0])), Err(Refusal::Invalid(_))));
        assert!(matches!(read(&image_with(CONFIGS[0]), Some(INDICES[0])), Err(Refusal::Invalid(_))));
        let both =
            format!(r#"{{"schemaVersion": 2, "manifests": [], "config": {}}}"#, descriptor(CONFIGS[0]));
        assert!(matches!(read(&both, None), Err(Refusal::Invalid(_))));
        let twice = r#"{"schemaVersion": 2, "manifests": [], "manifests": []}"#;
        assert!(matches!(read(twice, None), Err(Refusal::Invalid(_))));
    }

    #[test]
    fn what_is_no_image_is_named() {
        let other = |json: &str, kind| match read(json, kind).unwrap_err() {
            Refusal::Other(why) => why,
            Refusal::Invalid(why) => panic!("invalid: {why}"),
        };
        let helm = image_with("application/vnd.cncf.helm.config.v1+json");
        assert!(other(&helm, None).contains("helm"));
        let artifact = format!(
            r#"{{"schemaVersion": 2, "artifactType": "application/spdx+json", "config": {}, "layers": []}}"#,
            descriptor("application/vnd.oci.empty.v1+json")
        );
        assert!(other(&artifact, Some(MANIFESTS[0])).contains("spdx"));
        for (json, kind) in [
            (r#"{"schemaVersion": 1, "fsLayers": []}"#, None),
            (r#"{"schemaVersion": 1}"#, Some("application/json")),
            ("not even JSON", Some("application/vnd.docker.distribution.manifest.v1+prettyjws")),
        ] {
            assert!(other(json, kind).contains("schema 1"), "{json}");
        }
        assert!(other(r#"{"schemaVersion": 2}"#, Some("application/x-new")).contains("x-new"));
    }

    #[test]
    fn malformed_documents_are_refused_in_short() {
        for bad in [
            "",
            "{",
            "[]",
            "null",
            "{}",
            r#"{"schemaVersion": 3}"#,
            r#"{"schemaVersion": 2}"#,
            r#"{"schemaVersion": 2, "manifests": {}}"#,
            r#"{"schemaVersion": 2, "manifests": [{"digest": "sha256:../x", "size": 1}]}"#,
            &format!(r#"{{"schemaVersion": 2, "manifests": [{{"digest": "sha256:{HEX}", "size": -1}}]}}"#),
            &format!(r#"{{"schemaVersion": 2, "mediaType": "{}", "layers": []}}"#, MANIFESTS[0]),
            &format!(r#"{{"schemaVersion": "{}"}}"#, "x".repeat(100_000)),
            &"[".repeat(100_000),
        ] {
            match read(bad, None) {
                Err(Refusal::Invalid(why)) => assert!(why.len() < 1000, "{why}"),
                other => panic!("{bad:.80}: {other:?}"),
            }
        }
    }

    #[test]
    fn too_many_layers_and_entries_are_refused() {
        let many = |what: &str, n| {
            let one = descriptor("application/vnd.oci.image.layer.v1.tar");
            let list = vec![one; n].join(",");
            let config = if what == "layers" {
                format!(r#""config": {},"#, descriptor(CONFIGS[0]))
            } else {
                String::new()
            };
            read(&format!(r#"{{"schemaVersion": 2, {config} "{what}": [{list}]}}"#), None)
        };
        for (what, max) in [("layers", LAYERS_MAX), ("manifests", ENTRIES_MAX)] {
            assert!(many(what, max).is_ok());
            assert!(matches!(many(what, max + 1), Err(Refusal::Invalid(_))));
        }
    }

    fn entry(os: &str, architecture: &str, variant: Option<&str>, size: u64) -> Descriptor {
        let platform = Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        };
        let digest = Digest::parse(&format!("sha256:{HEX}")).unwrap();
        Descriptor { media_type: MANIFESTS[0].to_owned(), digest, size, platform: Some(platform) }
    }

    #[test]
    fn the_most_compatible_entry_is_chosen() {
        let entries = [
            entry("windows", "amd64", None, 1),
            entry("linux", "amd64", Some("v3"), 2),
            entry("linux", "amd64", Some("v2"), 3),
            entry("linux", "arm64", Some("v8"), 4),
            entry("unknown", "unknown", None, 5),
        ];
        assert_eq!(choose(&entries, &Platform::linux("amd64")).unwrap().size, 3);
        assert_eq!(choose(&entries, &Platform::linux("aarch64")).unwrap().size, 4);
        let offered = choose(&entries, &Platform::linux("riscv64")).unwrap_err();
        assert_eq!(offered, ["windows/amd64", "linux/amd64/v3", "linux/amd64/v2", "linux/arm64/v8"]);
        let offered = choose(&entries[4..], &Platform::linux("amd64")).unwrap_err();
        assert_eq!(offered, ["no platform"]);
        assert_eq!(choose(&[], &Platform::linux("amd64")).unwrap_err(), ["no platform"]);
    }

    #[test]
    fn the_only_entry_needs_no_platform() {
        let mut entries = vec![entry("linux", "amd64", None, 1)];
        entries[0].platform = None;
        assert!(choose(&entries, &Platform::linux("amd64")).is_ok());
        entries.push(entries[0].clone());
        assert!(choose(&entries, &Platform::linux("amd64")).is_err());
    }

    #[test]
    fn platforms_of_an_error_are_bounded() {
        let entries: Vec<_> =
            (0..500).map(|i| entry("linux", &format!("{i}{}", "x".repeat(500)), None, 1)).collect();
        let offered = choose(&entries, &Platform::linux("amd64")).unwrap_err();
        assert_eq!(offered.len(), SHOWN_MAX + 1);
        assert!(offered.iter().all(|platform| platform.chars().count() < 250));
    }

    #[test]
    fn layers_are_packed_as_their_type_says() {
        assert_eq!(layer_media("application/vnd.docker.image.rootfs.diff.tar.gzip"), Ok(LayerMedia::TarGzip));
        assert_eq!(layer_media("application/vnd.oci.image.layer.v1.tar+zstd"), Ok(LayerMedia::TarZstd));
        assert_eq!(layer_media("application/vnd.oci.image.layer.v1.tar"), Ok(LayerMedia::Tar));
        for bad in ["", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/wasm"] {
            assert!(matches!(layer_media(bad), Err(Refusal::Other(_))), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_document_is_read_or_refused_in_short(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            sent in proptest::option::of(prop::sample::select(vec![INDICES[0], MANIFESTS[1], "text/plain", "x/y"])),
        ) {
            let mut bytes = image_with(CONFIGS[0]).into_bytes();
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            match parse(&bytes, sent) {
                Ok(Manifest::Image { config, .. }) => prop_assert!(CONFIGS.contains(&config.media_type.as_str())),
                Ok(Manifest::Index(_)) => prop_assert!(false, "an image became an index"),
                Err(Refusal::Other(why) | Refusal::Invalid(why)) => prop_assert!(why.len() < 1000, "{}", why),
            }
        }
    }
}
