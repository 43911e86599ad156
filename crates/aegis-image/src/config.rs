//! The configuration of an image, raw and checked.

use aegis_types::{Digest, ImageConfig, OciConfig};
use serde_json::json;

use crate::error::{ImageError, printable};

const OS: &str = "linux";

/// What images for this machine call its architecture: the word of Go, such as `amd64`.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What AegisVM keeps of a raw configuration, and the layers that it lists.
pub(crate) fn parse(raw: &[u8]) -> Result<(ImageConfig, Vec<Digest>), ImageError> {
    let mut oci: OciConfig = serde_json::from_slice(raw)
        .map_err(|error| ImageError::UnreadableConfig { why: printable(error.to_string().as_bytes()) })?;
    let listed = std::mem::take(&mut oci.rootfs.diff_ids);
    check_platform(&oci.os, &oci.architecture)?;
    Ok((ImageConfig::from_oci(oci)?, listed))
}

/// Refuses what does not run here. What does not say is given the benefit of the doubt.
fn check_platform(os: &str, architecture: &str) -> Result<(), ImageError> {
    if runs_here(os, architecture) {
        return Ok(());
    }
    let words = |text: &str, default: &str| {
        if text.is_empty() { default.to_owned() } else { printable(text.as_bytes()) }
    };
    let found = format!("{}/{}", words(os, OS), words(architecture, "unknown"));
    Err(ImageError::Platform { found, wanted: platform() })
}

pub(crate) fn runs_here(os: &str, architecture: &str) -> bool {
    (os.is_empty() || os == OS) && (architecture.is_empty() || architecture == host_architecture())
}

/// Of this machine's guests.
pub(crate) fn platform() -> String {
    format!("{OS}/{}", host_architecture())
}

/// The configuration of an image that came without one.
pub(crate) fn of_plain_archive(diff_id: &Digest) -> Vec<u8> {
    let config = json!({
        "architecture": host_architecture(),
        "os": OS,
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    config.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_image_for_another_machine_names_both_platforms() {
        let error = parse(br#"{"os": "windows", "architecture": "s390x", "rootfs": {}}"#).unwrap_err();
        let wanted = format!("the image is made for windows/s390x, but this machine runs {}", platform());
        assert_eq!(error.to_string(), wanted);
        assert!(parse(br#"{"rootfs": {}}"#).is_ok());
    }

    #[test]
    fn what_is_made_for_a_plain_archive_is_read_back() {
        let diff_id = Digest::from_sha256(&[3; 32]);
        let (config, listed) = parse(&of_plain_archive(&diff_id)).unwrap();
        assert_eq!((config.architecture.as_str(), listed), (host_architecture(), vec![diff_id]));
        assert!(config.env.is_empty());
    }
}
