//! Which variable wins. Pure.

use std::collections::BTreeMap;

/// The environment of a command but for what the guest adds below it: secrets, then what was asked for by value.
pub(crate) fn environment(
    secrets: &BTreeMap<String, String>,
    env: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut merged = secrets.clone();
    merged.extend(env.iter().map(|(name, value)| (name.clone(), value.clone())));
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_by_value_wins() {
        let layer = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>()
        };
        let merged = environment(
            &layer(&[("B", "secret"), ("C", "secret"), ("D", "secret")]),
            &layer(&[("C", "env"), ("E", "env")]),
        );
        let expected = [("B", "secret"), ("C", "env"), ("D", "secret"), ("E", "env")];
        assert_eq!(merged, layer(&expected));
    }
}
