//! Images as archives for others.
//!
//! One tar archive that is both an OCI image layout and what `docker save` writes: the same blobs, referred to by
//! `index.json` and by `manifest.json`. The same image gives the same bytes.

use std::fs::File;
use std::io::{self, Read, Write};

use aegis_types::{Digest, ImageName};
use tar::{Builder, EntryType, Header};

use super::Store;
use super::files::file_error;
use super::records::ManifestRecord;
use crate::error::ImageError;
use crate::hash::{self, Hashing};
use crate::manifest::{self, Descriptor, DockerImage, FULL_NAME, MANIFEST, REF_NAME};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

impl Store {
    /// Writes the image as an archive that `docker load`, Podman, Skopeo and [`Store::load`] read. Layers are written
    /// as they came.
    ///
    /// # Errors
    /// [`ImageError::NoSuchImage`]; [`ImageError::NotKept`] and [`ImageError::MissingBlob`] if the store lacks parts;
    /// [`ImageError::Write`] if `out` fails.
    pub fn save(&self, name: &ImageName, out: impl Write) -> Result<(), ImageError> {
        let _hold = self.hold()?;
        let info = self.resolve(name)?.ok_or_else(|| ImageError::NoSuchImage(name.clone()))?;
        let manifest = info.manifest.ok_or_else(|| ImageError::NotKept(name.clone()))?;
        let record = self.needed_manifest(&manifest)?;
        // Before anything is written: half an archive helps nobody.
        for blob in record.blobs() {
            self.existing_blob(blob)?;
        }
        let mut archive = Archive { tar: Builder::new(out), written: Vec::new() };
        self.write_image(&info.name, &record, &mut archive)?;
        archive.tar.into_inner().and_then(|mut out| out.flush()).map_err(ImageError::Write)
    }

    fn write_image(
        &self,
        name: &ImageName,
        record: &ManifestRecord,
        archive: &mut Archive<impl Write>,
    ) -> Result<(), ImageError> {
        let config_path = self.existing_blob(&record.config_blob)?;
        let config = std::fs::read(&config_path).map_err(file_error("read", &config_path))?;
        if hash::of_bytes(&config) != record.config_blob {
            return Err(ImageError::MissingBlob { digest: record.config_blob.clone(), path: config_path });
        }
        let manifest = manifest::manifest(&config, &record.layers);
        let digest = hash::of_bytes(&manifest);
        let mut descriptor = Descriptor::new(MANIFEST, digest.clone(), manifest.len() as u64);
        let tag = name.tag();
        descriptor.annotations = tag.map(|tag| {
            let full = format!("{}/{}:{tag}", name.registry(), name.repository());
            [(FULL_NAME.to_owned(), full), (REF_NAME.to_owned(), tag.to_owned())].into()
        });
        let docker = [DockerImage {
            config: member(&record.config_blob),
            repo_tags: tag.map(|tag| vec![with_tag(name, tag)]),
            layers: Some(record.layers.iter().map(|layer| member(&layer.digest)).collect()),
        }];
        archive.bytes("oci-layout", LAYOUT)?;
        archive.bytes("index.json", &manifest::index(descriptor))?;
        archive.bytes("manifest.json", &manifest::json(&docker))?;
        archive.bytes(&member(&digest), &manifest)?;
        archive.bytes(&member(&record.config_blob), &config)?;
        for layer in &record.layers {
            if !archive.written.contains(&layer.digest) {
                self.write_layer(&layer.digest, archive)?;
                archive.written.push(layer.digest.clone());
            }
        }
        Ok(())
    }

    fn write_layer(&self, digest: &Digest, archive: &mut Archive<impl Write>) -> Result<(), ImageError> {
        let path = self.existing_blob(digest)?;
        let file = File::open(&path).map_err(file_error("open", &path))?;
        let size = file.metadata().map_err(file_error("read", &path))?.len();
        let mut content = Hashing::new(file.take(size));
        archive.entry(&member(digest), size, &mut content)?;
        // The archive has it already, but nobody may take it for good.
        if content.digest() == *digest {
            return Ok(());
        }
        Err(ImageError::MissingBlob { digest: digest.clone(), path })
    }
}

struct Archive<W: Write> {
    tar: Builder<W>,
    /// Layers that are in it: one image can have the same layer twice.
    written: Vec<Digest>,
}

impl<W: Write> Archive<W> {
    fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<(), ImageError> {
        self.entry(path, bytes.len() as u64, &mut &bytes[..])
    }

    fn entry(&mut self, path: &str, size: u64, content: &mut dyn Read) -> Result<(), ImageError> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(size);
        self.tar.append_data(&mut header, path, Exactly { content, left: size }).map_err(ImageError::Write)
    }
}

/// Fails rather than giving less than was announced.
struct Exactly<'c> {
    content: &'c mut dyn Read,
    left: u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a layer became shorter"));
        }
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

fn member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The name as Docker wants it: short, but never without its tag.
fn with_tag(name: &ImageName, tag: &str) -> String {
    let name = name.as_str();
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let suffix = format!(":{tag}");
    if name.ends_with(&suffix) { name.to_owned() } else { name.to_owned() + &suffix }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn docker_names_always_have_a_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (name, expected) in [
            ("base".to_owned(), "base:latest"),
            ("localhost:5000/a:1".to_owned(), "localhost:5000/a:1"),
            (format!("python:3@{digest}"), "python:3"),
        ] {
            let name = ImageName::parse(&name).unwrap();
            assert_eq!(with_tag(&name, name.tag().unwrap()), expected);
        }
    }
}
