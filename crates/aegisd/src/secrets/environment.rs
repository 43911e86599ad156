//! Which variable wins. Pure.

use std::collections::BTreeMap;

/// The environment of a command but for what the guest adds below it: defaults of the image, then secrets, then what was
/// asked for by value.
pub(crate) fn environment(
    image: &BTreeMap<String, String>,
    secrets: &BTreeMap<String, String>,
    env: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut merged = BTreeMap::new();
    for layer in [image, secrets, env] {
        merged.extend(layer.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_layers_win() {
        let layer = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>()
        };
        let merged = environment(
            &layer(&[("A", "image"), ("B", "image"), ("C", "image")]),
            &layer(&[("B", "secret"), ("C", "secret"), ("D", "secret")]),
            &layer(&[("C", "env"), ("E", "env")]),
        );
        let expected = [("A", "image"), ("B", "secret"), ("C", "env"), ("D", "secret"), ("E", "env")];
        assert_eq!(merged, layer(&expected));
    }
}
