//! Where copies begin and end: the grammar of the arguments, and the rules of `cp`.

use std::path::PathBuf;

use aegis_types::FileKind;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A path of this machine.
    Host(PathBuf),
    /// A path in an instance; absolute.
    Guest { instance: String, path: String },
    /// A tar stream on standard input or output.
    Stdio,
}

impl Place {
    /// `INSTANCE:PATH`, `PATH` or `-`. What begins with `/` or `.` is a path, whatever follows.
    pub(super) fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stdio;
        }
        match text.split_once(':') {
            Some((instance, path))
                if !instance.is_empty() && !instance.contains('/') && !instance.starts_with('.') =>
            {
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                Self::Guest { instance: instance.to_owned(), path }
            }
            _ => Self::Host(text.into()),
        }
    }
}

/// What is copied.
pub(super) struct Source {
    pub(super) kind: FileKind,
    /// What is in the directory, not the directory.
    pub(super) contents: bool,
    pub(super) name: Vec<u8>,
}

/// Where it is to be.
pub(super) struct Destination<'a> {
    pub(super) path: &'a [u8],
    /// What is there, if something is.
    pub(super) kind: Option<FileKind>,
}

/// Where the copy is unpacked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Landing {
    /// An existing directory.
    pub(super) directory: Vec<u8>,
    /// Name of the copy in it; empty when its contents go there directly.
    pub(super) root: Vec<u8>,
}

impl Landing {
    /// The rules: into a directory that exists, and under the last name of the path otherwise.
    pub(super) fn find(source: Source, destination: Destination<'_>) -> Result<Self, &'static str> {
        let path = destination.path;
        let is_directory = source.kind == FileKind::Directory;
        let into = |root: Vec<u8>| Ok(Self { directory: path.to_vec(), root });
        match destination.kind {
            Some(FileKind::Directory) if is_directory && source.contents => into(Vec::new()),
            Some(FileKind::Directory) => into(source.name),
            Some(_) if is_directory => Err("it exists and is not a directory"),
            Some(_) if path.ends_with(b"/") => Err("it is not a directory"),
            None if !is_directory && path.ends_with(b"/") => Err("there is no such directory"),
            _ => {
                let root = last_name(path).ok_or("it has no name")?;
                Ok(Self { directory: parent(path), root: root.to_vec() })
            }
        }
    }
}

/// `DIRECTORY/.` and `.` mean what is in it.
pub(super) fn is_contents(path: &[u8]) -> bool {
    path == b"." || path.ends_with(b"/.")
}

/// The last component, unless it is no name.
pub(super) fn last_name(path: &[u8]) -> Option<&[u8]> {
    let mut parts = path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.next_back().filter(|name| *name != b"..")
}

/// What is before the last component.
fn parent(path: &[u8]) -> Vec<u8> {
    let mut rest = path;
    loop {
        while let [before @ .., b'/'] = rest {
            rest = before;
        }
        match rest {
            [before @ .., b'/', b'.'] => rest = before,
            _ => break,
        }
    }
    match rest.iter().rposition(|&b| b == b'/') {
        Some(0) => b"/".to_vec(),
        Some(at) => rest[..at].to_vec(),
        None => b".".to_vec(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn arguments_are_paths_or_paths_in_instances() {
        let guest =
            |instance: &str, path: &str| Place::Guest { instance: instance.into(), path: path.into() };
        for (text, expected) in [
            ("-", Place::Stdio),
            ("web:/etc", guest("web", "/etc")),
            ("web:srv/", guest("web", "/srv/")),
            ("web:", guest("web", "/")),
            ("a:b:c", guest("a", "/b:c")),
            ("./a:b", Place::Host("./a:b".into())),
            ("/a:b", Place::Host("/a:b".into())),
            ("dir/a:b", Place::Host("dir/a:b".into())),
            ("file", Place::Host("file".into())),
            (":x", Place::Host(":x".into())),
        ] {
            assert_eq!(Place::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn copies_land_where_cp_would_put_them() {
        use FileKind::{Directory, File};
        let find = |kind, contents, path: &str, there| {
            let source = Source { kind, contents, name: b"src".to_vec() };
            let landing = Landing::find(source, Destination { path: path.as_bytes(), kind: there })?;
            let text = |bytes| String::from_utf8(bytes).unwrap();
            Ok::<_, &str>((text(landing.directory), text(landing.root)))
        };
        let at = |directory: &str, root: &str| Ok((directory.to_owned(), root.to_owned()));
        assert_eq!(find(File, false, "/tmp", Some(Directory)), at("/tmp", "src"));
        assert_eq!(find(File, false, "/tmp/", Some(Directory)), at("/tmp/", "src"));
        assert_eq!(find(File, false, "/tmp/f", Some(File)), at("/tmp", "f"));
        assert_eq!(find(File, false, "/tmp/new", None), at("/tmp", "new"));
        assert_eq!(find(File, false, "new", None), at(".", "new"));
        assert_eq!(find(File, false, "/new", None), at("/", "new"));
        assert_eq!(find(Directory, false, "/tmp", Some(Directory)), at("/tmp", "src"));
        assert_eq!(find(Directory, true, "/tmp", Some(Directory)), at("/tmp", ""));
        assert_eq!(find(Directory, false, "/tmp/new/", None), at("/tmp", "new"));
        assert_eq!(find(Directory, true, "a/new/.", None), at("a", "new"));
        assert!(find(File, false, "/tmp/new/", None).is_err());
        assert!(find(File, false, "/tmp/f/", Some(File)).is_err());
        assert!(find(Directory, false, "/tmp/f", Some(File)).is_err());
        assert!(find(File, false, "..", None).is_err());
    }
}
