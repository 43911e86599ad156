//! The command lines of `aegis image` and `aegis registry`.

use std::path::PathBuf;

use aegis_types::{ImageName, PullPolicy};
use clap::Subcommand;

use super::Format;
use super::values::duration_text;

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List images
    List(Format),
    /// Get an image from its registry
    #[command(
        long_about = "Get an image from its registry\n\nA download that was interrupted goes on where it was."
    )]
    Pull {
        /// Name, such as python:3.12-alpine, ghcr.io/team/tools:v1 or python@sha256:...
        #[arg(value_name = "IMAGE", value_parser = ImageName::parse)]
        name: ImageName,
        /// Whether to ask the registry: missing, always or never
        #[arg(long, value_name = "POLICY", default_value = "always", value_parser = str::parse::<PullPolicy>)]
        pull: PullPolicy,
        /// Print what happens as JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Show everything about an image, as JSON
    Inspect {
        /// Name
        #[arg(value_name = "IMAGE", value_parser = ImageName::parse)]
        name: ImageName,
    },
    /// Take names from images; an image without a name goes when no instance uses it
    Delete {
        /// Names
        #[arg(required = true, value_name = "IMAGE", value_parser = ImageName::parse)]
        names: Vec<ImageName>,
        /// Also if an instance uses the image, which keeps it
        #[arg(long)]
        force: bool,
    },
    /// Delete what nobody needs: images without a name, layers of no image, downloads that were given up
    Prune {
        /// Images with a name as well, if no instance and no template uses them
        #[arg(long)]
        all: bool,
        /// Only names and downloads that were not used for this time, such as 14d
        #[arg(long, value_name = "DURATION", value_parser = duration_text)]
        older_than: Option<String>,
    },
    /// Make an image of a tar file that has a root file system
    Import {
        /// Tar file, optionally compressed with gzip; - is standard input
        #[arg(value_name = "TAR")]
        tar: PathBuf,
        /// Name of the image
        #[arg(long, value_name = "IMAGE", value_parser = ImageName::parse)]
        name: ImageName,
    },
    /// Make images of an archive of `docker save` or `aegis image save`, or any other OCI archive
    Load {
        /// Archive, optionally compressed; - is standard input
        #[arg(value_name = "ARCHIVE")]
        archive: PathBuf,
        /// Name of the image, for an archive with a single one [default: as the archive says]
        #[arg(long, value_name = "IMAGE", value_parser = ImageName::parse)]
        name: Option<ImageName>,
    },
    /// Write an image into an OCI archive
    Save {
        /// Name
        #[arg(value_name = "IMAGE", value_parser = ImageName::parse)]
        name: ImageName,
        /// File to write [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Show what images take up on the disk
    Df(Format),
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// Check a user name and a password at a registry, and keep them for pulls
    Login {
        /// Host, such as ghcr.io or 127.0.0.1:5000
        #[arg(value_name = "HOST")]
        registry: String,
        /// User name; without it the terminal asks
        #[arg(short, long, value_name = "USER")]
        username: Option<String>,
        /// Read the password, or an access token, from standard input instead of asking
        #[arg(long)]
        password_stdin: bool,
    },
    /// Forget the user name and the password for a registry
    Logout {
        /// Host
        #[arg(value_name = "HOST")]
        registry: String,
    },
    /// List registries with kept credentials
    List(Format),
}
