//! Random trees come back whole; random damage is refused or built, never worse.

use std::collections::BTreeMap;

use aegis_image::Limits;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::support::*;

#[derive(Debug, Clone)]
enum Item {
    File {
        len: usize,
        seed: u8,
    },
    Dir,
    Symlink(String),
    Char(u32, u32),
    Fifo,
    /// To the n-th entry before it, counted modulo their number, unless that is a directory.
    HardLink(usize),
}

#[derive(Debug, Clone)]
struct Member {
    item: Item,
    mode: u32,
    uid: u32,
    mtime: (i64, u32),
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn member() -> impl Strategy<Value = Member> {
    let item = prop_oneof![
        4 => (prop_oneof![0..300usize, 3900..4300usize, 0..20_000usize], any::<u8>())
            .prop_map(|(len, seed)| Item::File { len, seed }),
        2 => Just(Item::Dir),
        1 => "[a-z/.]{1,300}".prop_map(Item::Symlink),
        1 => (0..4096u32, 0..(1u32 << 20)).prop_map(|(major, minor)| Item::Char(major, minor)),
        1 => Just(Item::Fifo),
        2 => any::<usize>().prop_map(Item::HardLink),
    ];
    let xattrs = btree_map("(user|trusted|security)\\.[a-z]{1,9}", vec(any::<u8>(), 0..600), 0..4);
    let mtime = (-1i64 << 40..1i64 << 40, 0..1_000_000_000u32);
    (item, 0..0o10000u32, 0..u32::MAX, mtime, xattrs).prop_map(|(item, mode, uid, mtime, xattrs)| Member {
        item,
        mode,
        uid,
        mtime,
        xattrs,
    })
}

fn pax_time((secs, nanos): (i64, u32)) -> String {
    match (secs < 0, nanos) {
        (true, 1..) => format!("-{}.{:09}", -(secs + 1), 1_000_000_000 - nanos),
        _ => format!("{secs}.{nanos:09}"),
    }
}

/// Adds `members` under distinct paths, directories used as parents of what comes later.
fn archive_of(members: &[(String, Member)]) -> (Vec<u8>, Listing) {
    let mut archive = Archive::new();
    let mut expected = Listing::new();
    let mut dirs = vec![String::new()];
    let mut files: Vec<String> = Vec::new();
    for (i, (name, member)) in members.iter().enumerate() {
        let path = format!("{}/{i}{name}", dirs[(i * 7) % dirs.len()]);
        let item = match &member.item {
            Item::HardLink(_) if files.is_empty() => &Item::Fifo,
            item => item,
        };
        if let Item::HardLink(n) = item {
            let target = &files[n % files.len()];
            archive = archive
                .pax(&[(b"path", path.as_bytes()), (b"linkpath", target.as_bytes())])
                .hard_link("l", "");
            let seen = expected[target.as_bytes()].clone();
            expected.insert(path.clone().into_bytes(), seen);
            files.push(path);
            continue;
        }
        let (time, uid) = (pax_time(member.mtime), member.uid.to_string());
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = vec![
            (b"path".to_vec(), path.clone().into_bytes()),
            (b"mtime".to_vec(), time.into_bytes()),
            (b"uid".to_vec(), uid.into_bytes()),
        ];
        for (name, value) in &member.xattrs {
            records.push((format!("SCHILY.xattr.{name}").into_bytes(), value.clone()));
        }
        let (code, data, kind) = match item {
            Item::File { len, seed } => {
                let data: Vec<u8> = (0..*len).map(|i| (i as u8).wrapping_mul(*seed)).collect();
                (b'0', data.clone(), Kind::File(data))
            }
            Item::Dir => (b'5', vec![], Kind::Dir),
            Item::Symlink(target) => {
                records.push((b"linkpath".to_vec(), target.clone().into_bytes()));
                (b'2', vec![], Kind::Symlink(target.clone().into_bytes()))
            }
            &Item::Char(major, minor) => (b'3', vec![], Kind::Char(major, minor)),
            Item::Fifo | Item::HardLink(_) => (b'6', vec![], Kind::Fifo),
        };
        let records: Vec<(&[u8], &[u8])> = records.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        archive = archive.pax(&records).member(code, b"m", &data, |h| {
            h.set_mode(member.mode);
            if let &Item::Char(major, minor) = item {
                h.set_device_major(major).unwrap();
                h.set_device_minor(minor).unwrap();
            }
        });
        let xattrs = member.xattrs.iter().map(|(n, v)| (n.clone().into_bytes(), v.clone())).collect();
        let seen = Seen {
            kind,
            mode: member.mode,
            uid: member.uid,
            gid: 0,
            mtime: member.mtime,
            links: 0,
            xattrs,
            same_as: path.clone().into_bytes(), // for now: the first name in the archive
        };
        expected.insert(path.clone().into_bytes(), seen);
        match item {
            Item::Dir => dirs.push(path),
            _ => files.push(path),
        }
    }
    (archive.finish(), expected)
}

/// Fills in what depends on the whole tree: link counts, and the first name of each inode.
fn settle(expected: &mut Listing) {
    let mut groups: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for (path, seen) in expected.iter() {
        groups.entry(seen.same_as.clone()).or_default().push(path.clone());
    }
    for group in groups.into_values() {
        for path in &group {
            let seen = expected.get_mut(path).unwrap();
            seen.same_as.clone_from(&group[0]);
            seen.links = group.len() as u32;
        }
    }
    let is_dir: Vec<Vec<u8>> =
        expected.iter().filter(|(_, seen)| seen.kind == Kind::Dir).map(|(path, _)| path.clone()).collect();
    for dir in &is_dir {
        let prefix = [dir, &b"/"[..]].concat();
        let below =
            |path: &&Vec<u8>| path.strip_prefix(&prefix[..]).is_some_and(|rest| !rest.contains(&b'/'));
        let links = 2 + is_dir.iter().filter(below).count() as u32;
        expected.get_mut(dir).unwrap().links = links;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_come_back_whole(members in vec(("[a-zA-Z0-9 .é-]{0,40}", member()), 1..60)) {
        let (tar, mut expected) = archive_of(&members);
        settle(&mut expected);
        let (_built, mut listing) = build(&tar);
        listing.remove(&b"/"[..]);
        prop_assert_eq!(listing, expected);
    }

    #[test]
    fn damaged_archives_never_panic_nor_give_a_broken_image(
        members in vec(("[a-z]{1,5}", member()), 1..8),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        fix_checksums in any::<bool>(),
    ) {
        let (mut tar, _) = archive_of(&members);
        for (at, value) in damage {
            let at = at.index(tar.len());
            tar[at] = value;
            if fix_checksums {
                // Any block may be a header: give it a right checksum, so that damage gets past the first gate.
                let block = at / 512 * 512;
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(&tar[block..block + 512]);
                header.set_cksum();
                tar[block..block + 512].copy_from_slice(header.as_bytes());
            }
        }
        let limits = Limits { max_bytes: 1 << 20, ..Limits::default() };
        if let Ok(built) = try_build(&tar, &limits) {
            fsck(&built.image);
            read_image(&built.image);
        }
    }
}
