//! What an image says about the process of an instance. Pure.

use aegis_lifecycle::record::InstanceSpec;
use aegis_types::{ImageConfig, ImageName};

/// The image does not say what to run, and nobody else does.
#[derive(Debug, thiserror::Error)]
#[error("image `{0}` does not say what to run")]
pub(crate) struct NoCommand(pub(crate) ImageName);

/// A process as it is to be started, but for its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Defaults {
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Working directory.
    pub(crate) workdir: Option<String>,
    /// User.
    pub(crate) user: Option<String>,
}

impl Defaults {
    /// The process of this instance with an image that says this.
    pub(crate) fn of(spec: &InstanceSpec, config: &ImageConfig) -> Result<Defaults, NoCommand> {
        let (command, workdir, user) = (spec.command.clone(), spec.workdir.clone(), spec.user.clone());
        if !spec.oci_defaults {
            return Ok(Defaults { command, workdir, user });
        }
        let command = full_command(&command, config);
        match command.first() {
            Some(program) if !program.is_empty() => Ok(Defaults {
                command,
                workdir: workdir.or_else(|| config.workdir.clone()),
                user: user.or_else(|| config.user.clone()),
            }),
            _ => Err(NoCommand(spec.image.clone())),
        }
    }
}

/// As Docker does it: what was asked for takes the place of CMD, not of ENTRYPOINT.
pub(crate) fn full_command(command: &[String], config: &ImageConfig) -> Vec<String> {
    let rest = if command.is_empty() { &config.cmd } else { command };
    config.entrypoint.iter().chain(rest).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn a_command_takes_the_place_of_cmd_and_follows_the_entry_point() {
        let config = |entrypoint: &[&str], cmd: &[&str]| ImageConfig {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..ImageConfig::default()
        };
        let both = config(&["/init", "-x"], &["serve"]);
        assert_eq!(full_command(&[], &both), words(&["/init", "-x", "serve"]));
        assert_eq!(full_command(&words(&["sh"]), &both), words(&["/init", "-x", "sh"]));
        assert_eq!(full_command(&words(&["sh"]), &config(&[], &["serve"])), words(&["sh"]));
        assert_eq!(full_command(&[], &config(&[], &["serve"])), words(&["serve"]));
        assert!(full_command(&[], &config(&[], &[])).is_empty());
    }
}
