//! From what an instance wants and what is stored to what a boot is given. Pure.

use std::collections::BTreeMap;

use aegis_proto::control::SecretContent;
use aegis_types::{SecretBytes, SecretName, SecretUse, WantedSecrets};

use super::InjectError;

/// Values of one instance together, in bytes: they travel in one message to the guest, as base64 at worst.
pub(super) const TOTAL_MAX: usize = 512 << 10;

/// What one boot is given.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    pub(super) variables: BTreeMap<String, SecretBytes>,
    pub(super) files: Vec<SecretContent>,
    /// For the audit log.
    pub(super) names: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Resolved {
    /// From everything that is stored of what is wanted.
    ///
    /// # Errors
    /// What must be there is not, or cannot be given.
    pub(super) fn new(
        wanted: &WantedSecrets,
        stored: &BTreeMap<SecretName, SecretBytes>,
    ) -> Result<Self, InjectError> {
        let mut resolved = Self::default();
        if wanted.variables.contains(&SecretUse::All) {
            for (name, value) in stored.iter().filter(|(name, _)| name.is_variable()) {
                if is_text(value) {
                    resolved.variables.insert(name.as_str().to_owned(), value.clone());
                } else {
                    resolved
                        .notes
                        .push(format!("secret `{name}` is not text and is left out of the environment"));
                }
            }
            resolved.names = resolved.variables.keys().cloned().collect();
        }
        for wanted in &wanted.variables {
            let SecretUse::One { variable, secret, optional } = wanted else { continue };
            match stored.get(secret) {
                Some(value) if is_text(value) => {
                    let name = SecretUse::One {
                        variable: variable.clone(),
                        secret: secret.clone(),
                        optional: false,
                    };
                    if resolved.variables.insert(variable.clone(), value.clone()).is_some() {
                        resolved.names.retain(|other| other != variable);
                    }
                    resolved.names.push(name.to_string());
                }
                Some(_) => return Err(InjectError::NotText(secret.clone())),
                None if *optional => {
                    resolved.notes.push(format!("secret `{secret}` is not stored: `{variable}` is not set"));
                }
                None => return Err(InjectError::NotStored(secret.clone())),
            }
        }
        for file in &wanted.files {
            let value =
                stored.get(&file.secret).ok_or_else(|| InjectError::NotStored(file.secret.clone()))?;
            resolved.files.push(SecretContent { path: file.path.clone(), value: value.clone() });
            resolved.names.push(file.to_string());
        }
        let variables = resolved.variables.values();
        let files = resolved.files.iter().map(|file| &file.value);
        let total: usize = variables.chain(files).map(|value| value.expose().len()).sum();
        if total > TOTAL_MAX { Err(InjectError::TooLarge) } else { Ok(resolved) }
    }

    /// Each once.
    pub(super) fn values(&self) -> Vec<SecretBytes> {
        let mut values: Vec<SecretBytes> = Vec::new();
        for value in self.variables.values().chain(self.files.iter().map(|file| &file.value)) {
            if !values.contains(value) {
                values.push(value.clone());
            }
        }
        values
    }
}

/// Whether a variable can have it.
fn is_text(value: &SecretBytes) -> bool {
    value.expose_text().is_some_and(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn stored(pairs: &[(&str, &[u8])]) -> BTreeMap<SecretName, SecretBytes> {
        let pair = |&(name, value): &(&str, &[u8])| {
            (SecretName::parse(name).unwrap(), SecretBytes::new(value.to_vec()))
        };
        pairs.iter().map(pair).collect()
    }

    fn resolve(
        variables: &[&str],
        files: &[&str],
        stored: &BTreeMap<SecretName, SecretBytes>,
    ) -> Result<Resolved, InjectError> {
        let wanted = WantedSecrets {
            variables: variables.iter().map(|text| text.parse().unwrap()).collect(),
            files: files.iter().map(|text| text.parse().unwrap()).collect(),
        };
        Resolved::new(&wanted, stored)
    }

    fn text(resolved: &Resolved) -> String {
        let pair =
            |(name, value): (&String, &SecretBytes)| format!("{name}={}", value.expose_text().unwrap());
        resolved.variables.iter().map(pair).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn forms_pick_what_they_say() {
        let stored = stored(&[("A", b"1"), ("B", b"2"), ("db.pass", b"3"), ("BIN", b"\0")]);
        let all =
            resolve(&["*", "A=secret.B", "X=secret.db.pass", "Y=secret.db.pass"], &[], &stored).unwrap();
        assert_eq!(text(&all), "A=2 B=2 X=3 Y=3");
        assert_eq!(all.names, ["B", "A=secret.B", "X=secret.db.pass", "Y=secret.db.pass"]);
        assert!(all.notes[0].contains("`BIN` is not text"), "{:?}", all.notes);
        assert_eq!(all.values().len(), 2);
        let none = resolve(&["C?"], &[], &stored).unwrap();
        assert!(none.variables.is_empty() && none.notes == ["secret `C` is not stored: `C` is not set"]);
        let file = resolve(&[], &["BIN:/run/secrets/x"], &stored).unwrap();
        assert_eq!(
            (file.files[0].path.as_str(), file.files[0].value.expose()),
            ("/run/secrets/x", &b"\0"[..])
        );
        assert_eq!(file.names, ["BIN:/run/secrets/x"]);
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let stored = stored(&[("A", b"1"), ("BIN", b"\0"), ("BIG", &[b'x'; TOTAL_MAX])]);
        for (variables, files, expected) in [
            (&["C"][..], &[][..], "it needs secret `C`, which is not stored"),
            (&["A=secret.c"], &[], "it needs secret `c`, which is not stored"),
            (&[], &["C:/run/secrets/c"], "it needs secret `C`, which is not stored"),
            (&["BIN"], &[], "secret `BIN` cannot be a variable"),
            (&["BIG", "A"], &[], "too large together: at most 512 KiB"),
        ] {
            let error = resolve(variables, files, &stored).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
