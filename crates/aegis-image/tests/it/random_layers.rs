//! Random layers, compared with a model that knows nothing of trees: a map of whole paths, to which each layer's
//! whiteouts are applied before all of its entries.

use std::collections::BTreeMap;

use aegis_image::{Limits, host_architecture};
use proptest::collection::vec;
use proptest::prelude::*;

use super::archives::{MANIFEST, descriptor, oci_archive, oci_image};
use super::stack::{Home, name, stacked};
use super::support::*;

#[derive(Debug, Clone)]
enum Op {
    File(Vec<u8>),
    Dir,
    Symlink(Vec<&'static str>, bool),
    HardLink(Vec<u8>),
}

/// Paths are indices into few names, so that layers often mean the same one.
#[derive(Debug, Clone)]
struct Entry {
    path: Vec<u8>,
    op: Op,
    mode: u32,
}

#[derive(Debug, Clone)]
struct LayerOps {
    entries: Vec<Entry>,
    whiteouts: Vec<(Vec<u8>, bool)>,
    /// Where in the archive each whiteout comes, if not before all entries.
    places: Vec<prop::sample::Index>,
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(0..4u8, 1..5)
}

fn layer(symlinks: bool) -> impl Strategy<Value = LayerOps> {
    let target = vec(
        prop_oneof![4 => Just("a"), 4 => Just("b"), 2 => Just("c"), 2 => Just(".."), 1 => Just(".")],
        1..5,
    );
    let op = prop_oneof![
        6 => vec(any::<u8>(), 0..6).prop_map(Op::File),
        4 => Just(Op::Dir),
        if symlinks { 4 } else { 0 } => (target, any::<bool>()).prop_map(|(t, absolute)| Op::Symlink(t, absolute)),
        3 => path().prop_map(Op::HardLink),
    ];
    let entry = (path(), op, 0..0o1000u32).prop_map(|(path, op, mode)| Entry { path, op, mode });
    let whiteouts = vec((path(), prop::bool::weighted(0.3)), 0..4);
    (vec(entry, 0..14), whiteouts, vec(any::<prop::sample::Index>(), 4))
        .prop_map(|(entries, whiteouts, places)| LayerOps { entries, whiteouts, places })
}

fn names(path: &[u8]) -> Vec<String> {
    path.iter().map(|&i| ["a", "b", "c", "d"][usize::from(i)].to_owned()).collect()
}

#[derive(Debug, Clone)]
struct Node {
    kind: Kind,
    mode: u32,
    /// The same for all names of one file.
    id: usize,
}

type Path = Vec<String>;

#[derive(Debug, Default)]
struct Model {
    nodes: BTreeMap<Path, Node>,
    ids: usize,
}

impl Model {
    /// Where a path's parents lead; `None` if that takes too many links.
    fn resolve(&self, parents: &[String]) -> Option<Path> {
        let (mut path, mut at, mut links) = (parents.to_vec(), 0, 0);
        while at < path.len() {
            if path[at] == "." {
                path.remove(at);
            } else if path[at] == ".." {
                path.remove(at);
                if at > 0 {
                    at -= 1;
                    path.remove(at);
                }
            } else if let Some(Node { kind: Kind::Symlink(target), .. }) = self.nodes.get(&path[..=at]) {
                links += 1;
                if links > 40 {
                    return None;
                }
                let target = String::from_utf8(target.clone()).unwrap();
                let from = if target.starts_with('/') { 0 } else { at };
                let parts = target.split('/').filter(|part| !part.is_empty()).map(str::to_owned);
                path.splice(from..=at, parts.collect::<Vec<_>>());
                at = from;
            } else {
                at += 1;
            }
        }
        Some(path)
    }

    fn remove(&mut self, path: &Path) {
        self.nodes.retain(|other, _| !other.starts_with(path));
    }

    fn put(&mut self, path: &Path, kind: Kind, mode: u32) {
        self.ids += 1;
        self.nodes.insert(path.clone(), Node { kind, mode, id: self.ids });
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.is_empty() || self.nodes.get(path).is_some_and(|node| node.kind == Kind::Dir)
    }

    fn make_parents(&mut self, parent: &Path) {
        for len in 1..=parent.len() {
            let path = parent[..len].to_vec();
            if !self.is_dir(&path) {
                self.remove(&path);
                self.put(&path, Kind::Dir, 0o755);
            }
        }
    }

    fn whiteout(&mut self, path: &[String], opaque: bool) {
        let parents = if opaque { path } else { &path[..path.len() - 1] };
        let Some(mut real) = self.resolve(parents) else { return };
        if opaque {
            let keep = real.len();
            self.nodes.retain(|other, _| !other.starts_with(&real) || other.len() <= keep);
        } else {
            real.push(path[path.len() - 1].clone());
            self.remove(&real);
        }
    }

    /// Whether the entry makes sense; only then is it in the archive.
    fn entry(&mut self, entry: &Entry) -> bool {
        let path = names(&entry.path);
        let (last, parents) = path.split_last().unwrap();
        let Some(mut real) = self.resolve(parents) else { return false };
        let target = match &entry.op {
            Op::HardLink(target) => {
                let target = names(target);
                let (last, parents) = target.split_last().unwrap();
                let Some(mut at) = self.resolve(parents) else { return false };
                at.push(last.clone());
                match self.nodes.get(&at) {
                    Some(node) if node.kind != Kind::Dir => Some(node.clone()),
                    _ => return false,
                }
            }
            _ => None,
        };
        self.make_parents(&real);
        real.push(last.clone());
        if matches!(entry.op, Op::Dir) && self.is_dir(&real) {
            self.nodes.get_mut(&real).unwrap().mode = entry.mode;
            return true;
        }
        self.remove(&real);
        match &entry.op {
            Op::File(content) => self.put(&real, Kind::File(content.clone()), entry.mode),
            Op::Dir => self.put(&real, Kind::Dir, entry.mode),
            Op::Symlink(target, absolute) => {
                self.put(&real, Kind::Symlink(link_target(target, *absolute).into_bytes()), entry.mode);
            }
            Op::HardLink(_) => {
                self.nodes.insert(real, target.unwrap());
            }
        }
        true
    }

    fn listing(&self) -> BTreeMap<Vec<u8>, (Kind, u32, Vec<u8>)> {
        let text = |path: &Path| format!("/{}", path.join("/")).into_bytes();
        let mut first: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let mut paths: Vec<_> = self.nodes.iter().map(|(path, node)| (text(path), node)).collect();
        paths.sort_by(|a, b| a.0.cmp(&b.0));
        let mut listing = BTreeMap::new();
        for (path, node) in paths {
            let same = first.entry(node.id).or_insert_with(|| path.clone()).clone();
            listing.insert(path, (node.kind.clone(), node.mode, same));
        }
        listing
    }
}

fn link_target(target: &[&str], absolute: bool) -> String {
    format!("{}{}", if absolute { "/" } else { "" }, target.join("/"))
}

fn whiteout_path(path: &[String], opaque: bool) -> String {
    match path.split_last() {
        _ if opaque => format!("{}/.wh..wh..opq", path.join("/")),
        Some((last, parents)) => parents.iter().map(|p| format!("{p}/")).collect::<String>() + ".wh." + last,
        None => unreachable!("paths have a component"),
    }
}

/// The archive of a layer, whose sensible entries are added to the model.
fn apply(model: &mut Model, layer: &LayerOps, shuffled: bool) -> Vec<u8> {
    let whiteouts: Vec<String> = layer
        .whiteouts
        .iter()
        .map(|(path, opaque)| {
            let path = names(path);
            // One that leads in circles is an error for us; it is left out.
            let circular = model.resolve(if *opaque { &path } else { &path[..path.len() - 1] }).is_none();
            model.whiteout(&path, *opaque);
            if circular { ".wh.none".to_owned() } else { whiteout_path(&path, *opaque) }
        })
        .collect();
    let entries: Vec<&Entry> = layer.entries.iter().filter(|entry| model.entry(entry)).collect();
    let mut archive = Archive::new();
    let place = |i: usize| if shuffled { layer.places[i].index(entries.len() + 1) } else { 0 };
    for at in 0..=entries.len() {
        for (i, whiteout) in whiteouts.iter().enumerate() {
            if place(i) == at {
                archive = archive.file(whiteout, b"");
            }
        }
        let Some(entry) = entries.get(at) else { break };
        let path = names(&entry.path).join("/");
        let path = path.as_bytes();
        let mode = |header: &mut tar::Header| header.set_mode(entry.mode);
        archive = match &entry.op {
            Op::File(content) => archive.member(b'0', path, content, mode),
            Op::Dir => archive.member(b'5', path, b"", mode),
            Op::Symlink(target, absolute) => archive.member(b'2', path, b"", |header| {
                mode(header);
                let target = link_target(target, *absolute);
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            }),
            Op::HardLink(target) => {
                let path = String::from_utf8(path.to_vec()).unwrap();
                archive.hard_link(&path, &names(target).join("/"))
            }
        };
    }
    archive.finish()
}

fn compare(layers: &[LayerOps], shuffled: bool) -> Result<(), TestCaseError> {
    let mut model = Model::default();
    let archives: Vec<Vec<u8>> = layers.iter().map(|layer| apply(&mut model, layer, shuffled)).collect();
    let mut listing = stacked(&archives);
    listing.remove(&b"/"[..]);
    let expected = model.listing();
    let mut names: BTreeMap<&Vec<u8>, u32> = BTreeMap::new();
    for (_, _, same) in expected.values() {
        *names.entry(same).or_default() += 1;
    }
    for (path, seen) in &listing {
        if seen.kind != Kind::Dir {
            prop_assert_eq!(Some(&seen.links), names.get(&seen.same_as), "links of {:?}", path);
        }
    }
    let found: BTreeMap<_, _> =
        listing.into_iter().map(|(path, seen)| (path, (seen.kind, seen.mode, seen.same_as))).collect();
    prop_assert_eq!(found, expected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn layers_with_links_for_parents_are_as_the_model_says(layers in vec(layer(true), 1..5)) {
        compare(&layers, false)?;
    }

    #[test]
    fn damaged_image_archives_never_panic_nor_reach_the_host(
        layers in vec(layer(true), 0..3),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        fix_checksums in any::<bool>(),
        text in any::<bool>(),
    ) {
        let mut model = Model::default();
        let layers: Vec<Vec<u8>> = layers.iter().map(|layer| apply(&mut model, layer, false)).collect();
        let (manifest, blobs) = oci_image(host_architecture(), &layers);
        let index = serde_json::json!({ "manifests": [descriptor(MANIFEST, &manifest)] });
        let mut archive = oci_archive(&index, &blobs);
        for (at, value) in damage {
            let at = at.index(archive.len());
            // Letters and digits keep documents readable for longer than any byte.
            archive[at] = if text { b"0a9z"[usize::from(value) % 4] } else { value };
            if fix_checksums {
                let block = at / 512 * 512;
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(&archive[block..block + 512]);
                header.set_cksum();
                archive[block..block + 512].copy_from_slice(header.as_bytes());
            }
        }
        let home = Home::with_limits(Limits { max_bytes: 4 << 20, ..Limits::default() });
        if let Ok(images) = home.store.load(&archive[..], Some(&name("x"))) {
            read_image(&images[0].path);
        }
    }

    /// Without links for parents, because the place of those in the archive does matter.
    #[test]
    fn the_place_of_whiteouts_in_a_layer_does_not_matter(layers in vec(layer(false), 1..5)) {
        compare(&layers, true)?;
    }
}
