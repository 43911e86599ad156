//! Images from a real registry: the program `docker-registry` of Debian, on the loopback interface.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use aegis_e2e::{Aegis, finish, wait_for};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// bcrypt of `hunter2`.
const HTPASSWD: &str = "me:$2b$04$76ekwuE.jYFHDkfoD8BZFOX3cU0llG/aNUP1a4vm3Xmlf87giVIA6\n";
/// `me:hunter2` in base64.
const BASIC: &str = "bWU6aHVudGVyMg==";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry with a directory of its own, until it is dropped.
struct Registry {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn start(protected: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut config = json!({
            "version": "0.1",
            "log": { "accesslog": { "disabled": true }, "level": "error" },
            "storage": { "filesystem": { "rootdirectory": dir.path().join("data") } },
            "http": { "addr": format!("127.0.0.1:{port}") },
        });
        if protected {
            let file = dir.path().join("htpasswd");
            fs::write(&file, HTPASSWD).unwrap();
            config["auth"] = json!({ "htpasswd": { "realm": "test", "path": file } });
        }
        let path = dir.path().join("config.yml");
        // YAML has JSON in it.
        fs::write(&path, config.to_string()).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed: `cargo xtask setup`");
        let registry = Self { child, port, _dir: dir };
        wait_for("the registry to listen", || TcpStream::connect(("127.0.0.1", registry.port)).ok());
        registry
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn name(&self, path: &str) -> String {
        format!("{}/{path}", self.host())
    }

    /// Sends a request; status and headers of the answer.
    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Vec<String>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Basic {BASIC}\r\n\
             Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.host(),
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        (status, lines.take_while(|line| !line.is_empty()).collect())
    }

    fn push_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        let (status, headers) =
            self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "application/octet-stream", b"");
        assert_eq!(status, 202);
        let location = headers.iter().find_map(|line| line.strip_prefix("Location: ")).unwrap();
        let path = &location[location.find("/v2/").unwrap()..];
        let (status, _) =
            self.send("PUT", &format!("{path}&digest={digest}"), "application/octet-stream", bytes);
        assert_eq!(status, 201);
        digest
    }

    /// Pushes an image with these layers: tar archives, and how each is packed.
    fn push(&self, repository: &str, tag: &str, process: &Value, layers: &[(Vec<u8>, Packed)]) {
        let mut described = Vec::new();
        for (tar, packed) in layers {
            let (bytes, suffix) = packed.pack(tar);
            let digest = self.push_blob(repository, &bytes);
            described.push(
                json!({ "mediaType": format!("{TAR}{suffix}"), "digest": digest, "size": bytes.len() }),
            );
        }
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest_of(tar)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": process,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let config_digest = self.push_blob(repository, &config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest, "size": config.len(),
            },
            "layers": described,
        });
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, headers) = self.send("PUT", &path, MANIFEST, manifest.to_string().as_bytes());
        assert_eq!(status, 201, "{headers:?}");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Clone, Copy)]
enum Packed {
    Plain,
    Gzip,
    Zstd,
}

impl Packed {
    fn pack(self, tar: &[u8]) -> (Vec<u8>, &'static str) {
        match self {
            Self::Plain => (tar.to_vec(), ""),
            Self::Gzip => {
                let mut gzip = flate2::read::GzEncoder::new(tar, flate2::Compression::fast());
                let mut bytes = Vec::new();
                gzip.read_to_end(&mut bytes).unwrap();
                (bytes, "+gzip")
            }
            Self::Zstd => (zstd::encode_all(tar, 1).unwrap(), "+zstd"),
        }
    }
}

/// One that nobody has now.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A layer under construction.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32, owner: (u64, u64), size: usize) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(size as u64);
        header
    }

    fn dir(mut self, path: &str) -> Self {
        self.0.append_data(&mut Self::header(EntryType::Directory, 0o755, (0, 0), 0), path, &[][..]).unwrap();
        self
    }

    fn file(mut self, path: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Self {
        let mut header = Self::header(EntryType::Regular, mode, owner, content.len());
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    fn link(mut self, kind: EntryType, path: &str, target: &str) -> Self {
        self.0.append_link(&mut Self::header(kind, 0o777, (0, 0), 0), path, target).unwrap();
        self
    }

    /// The next entry has this extended attribute.
    fn attribute(mut self, name: &str, value: &str) -> Self {
        let key = format!("SCHILY.xattr.{name}");
        self.0.append_pax_extensions([(key.as_str(), value.as_bytes())]).unwrap();
        self
    }

    /// An entry whose name nobody checks.
    fn raw(mut self, path: &str, content: &[u8]) -> Self {
        let mut header = Self::header(EntryType::Regular, 0o644, (0, 0), content.len());
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn end(self, packed: Packed) -> (Vec<u8>, Packed) {
        (self.0.into_inner().unwrap(), packed)
    }
}

/// A static program that needs nothing but its standard library.
fn look(dir: &Path) -> Vec<u8> {
    let program = dir.join("look");
    let mut rustc = Command::new("rustc");
    rustc
        .args([
            "--edition=2024",
            "-O",
            "-Cpanic=abort",
            "-Cstrip=symbols",
            "-Ctarget-feature=+crt-static",
            "-o",
        ])
        .arg(&program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/look.rs"));
    finish(rustc).expect_ok();
    fs::read(program).unwrap()
}

/// Layers of each packing, with everything that one layer can do to another.
fn layers(busybox: &[u8], look: &[u8]) -> [(Vec<u8>, Packed); 3] {
    let mut first = Layer::new();
    for dir in ["bin/", "dev/", "proc/", "sys/", "tmp/", "run/", "etc/", "srv/", "full/", "kept/"] {
        first = first.dir(dir);
    }
    let mut first = first.file("bin/busybox", 0o755, (0, 0), busybox);
    for applet in ["sh", "cat", "ls", "echo", "pwd", "id"] {
        first = first.link(EntryType::Symlink, &format!("bin/{applet}"), "busybox");
    }
    let first = first
        .file("etc/gone", 0o644, (0, 0), b"gone")
        .file("etc/replaced", 0o644, (0, 0), b"first")
        .file("full/one", 0o644, (0, 0), b"1")
        .file("kept/one", 0o644, (0, 0), b"1")
        .end(Packed::Plain);
    let second = Layer::new()
        .file("bin/look", 0o755, (0, 0), look)
        .file("etc/.wh.gone", 0o644, (0, 0), b"")
        .file("etc/replaced", 0o600, (1000, 1234), b"second")
        .file("full/.wh..wh..opq", 0o644, (0, 0), b"")
        .file("full/two", 0o644, (0, 0), b"2")
        .file("srv/owned", 0o4751, (1000, 1234), b"owned")
        .link(EntryType::Link, "srv/linked", "srv/owned")
        .end(Packed::Gzip);
    let third = Layer::new()
        .attribute("user.test", "value")
        .file("srv/attribute", 0o640, (7, 8), b"a")
        .file("kept/two", 0o644, (0, 0), b"2")
        .end(Packed::Zstd);
    [first, second, third]
}

#[test]
fn an_image_of_a_registry_runs_with_everything_that_its_layers_have() {
    let (aegis, registry) = (Aegis::new(), Registry::start(false));
    let busybox = aegis.aegis(["run", "--", "cat", "/bin/busybox"]).expect_ok().stdout;
    let dir = tempfile::tempdir().unwrap();
    let process = json!({
        "Env": ["PATH=/bin", "FROM_IMAGE=yes", "BOTH=image"], "WorkingDir": "/srv", "User": "1000:1234",
        "Entrypoint": ["/bin/sh", "-c", "pwd; id -u; id -g; echo $FROM_IMAGE $*", "entry"], "Cmd": ["cmd"],
    });
    registry.push("team/tiny", "1", &process, &layers(&busybox, &look(dir.path())));
    let name = registry.name("team/tiny:1");

    let script = "cat /etc/replaced; echo; ls /full /kept; look /etc/gone /etc/replaced /srv/owned \
                  /srv/linked /srv/attribute; echo $FROM_IMAGE $BOTH; pwd";
    let run =
        aegis.aegis(["run", "--image", &name, "--env", "BOTH=env", "--", "sh", "-c", script]).expect_ok();
    let expected = "second\n/full:\ntwo\n\n/kept:\none\ntwo\n/etc/gone NotFound\n\
                    /etc/replaced 100600 1000:1234 1 none\n/srv/owned 104751 1000:1234 2 none\n\
                    /srv/linked 104751 1000:1234 2 none\n/srv/attribute 100640 7:8 1 value\nyes env\n/\n";
    assert_eq!(run.out(), expected);
    // No terminal: the progress stands in lines.
    assert!(run.err().contains(&format!("[system] image ready: {name}")), "{}", run.err());

    // From now on nobody is asked.
    drop(registry);
    let defaults = aegis.aegis(["run", "--image", &name]).expect_ok();
    assert_eq!((defaults.out().as_str(), defaults.err().as_str()), ("/srv\n1000\n1234\nyes cmd\n", ""));
    let defaults = aegis.aegis(["run", "--image", &name, "--oci-defaults", "--", "one", "two"]).expect_ok();
    assert_eq!(defaults.out(), "/srv\n1000\n1234\nyes one two\n");
    let pull = aegis.aegis(["image", "pull", &name]).expect_code(1);
    assert!(pull.err().contains("no connection"), "{}", pull.err());
    let saved = dir.path().join("saved.tar");
    aegis.aegis(["image", "save", &name, "--output", saved.to_str().unwrap()]).expect_ok();
    aegis.aegis(["image", "delete", &name]).expect_ok();
    aegis.aegis(["image", "load", saved.to_str().unwrap(), "--name", "loaded:1"]).expect_ok();
    assert_eq!(aegis.aegis(["run", "--image", "loaded:1"]).expect_ok().out(), "/srv\n1000\n1234\nyes cmd\n");
}

#[test]
fn hostile_layers_are_refused_or_stay_inside() {
    let (aegis, registry) = (Aegis::new(), Registry::start(false));
    aegis.aegis(["up"]).expect_ok();
    let dir = tempfile::tempdir().unwrap();
    let canary = dir.path().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "alive").unwrap();
    let outside = canary.to_str().unwrap();
    let up = "../".repeat(20);
    let escape = format!("{up}{}", outside.trim_start_matches('/'));
    let none = json!({});
    let single = |layer: Layer| vec![layer.end(Packed::Gzip)];
    // A name that is too long for the header would not be an attack.
    assert!(escape.len() < 95, "{escape}");
    for (case, layer, reason) in [
        ("dots", Layer::new().raw(&format!("{escape}/new"), b"x"), "`..` in a path"),
        ("dots-file", Layer::new().raw(&format!("{escape}/file"), b"x"), "`..` in a path"),
        ("hard", Layer::new().link(EntryType::Link, "a", &format!("{outside}/file")), "hard link to"),
        ("whiteout", Layer::new().raw(&format!("{escape}/.wh.file"), b""), "`..` in a path"),
    ] {
        registry.push(case, "1", &none, &single(layer));
        let refused = aegis.aegis(["image", "pull", &registry.name(&format!("{case}:1"))]).expect_code(1);
        assert!(refused.err().contains(reason), "{case}: {}", refused.err());
    }
    // What stays inside is no attack: links are followed in the image, and a leading slash is its root.
    let inside = [
        Layer::new().link(EntryType::Symlink, "link", outside).end(Packed::Plain),
        Layer::new().file("link/file", 0o666, (0, 0), b"overwritten").end(Packed::Zstd),
        Layer::new().raw(&format!("{outside}/absolute"), b"x").end(Packed::Plain),
        Layer::new().file("link/.wh.file", 0o644, (0, 0), b"").end(Packed::Gzip),
    ];
    registry.push("inside", "1", &none, &inside);
    aegis.aegis(["image", "pull", &registry.name("inside:1")]).expect_ok();
    assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "alive");
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 1);
    // What is no layer at all, and a layer that is not what it was said to be.
    registry.push("garbage", "1", &none, &[(b"garbage".to_vec(), Packed::Gzip)]);
    let refused = aegis.aegis(["image", "pull", &registry.name("garbage:1")]).expect_code(1);
    assert!(refused.err().contains("cannot apply layer 1 of 1"), "{}", refused.err());
    let unknown = aegis.aegis(["image", "pull", &registry.name("unknown")]).expect_code(1);
    assert!(unknown.err().contains("404") && unknown.err().contains("hint: "), "{}", unknown.err());
    let list = aegis.aegis(["image", "list", "--json"]).expect_ok().stdout;
    let list: Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2, "the built-in one and `inside`: {list}");
}

#[test]
fn a_protected_registry_needs_a_login() {
    let (aegis, registry) = (Aegis::new(), Registry::start(true));
    aegis.aegis(["up"]).expect_ok();
    let layer = Layer::new().file("a", 0o644, (0, 0), b"a").end(Packed::Gzip);
    registry.push("private", "1", &json!({}), &[layer]);
    let (host, name) = (registry.host(), registry.name("private:1"));
    let refused = aegis.aegis(["image", "pull", &name]).expect_code(1);
    assert!(refused.err().contains(&format!("aegis registry login {host}")), "{}", refused.err());
    let login = |password: &str| {
        let mut command =
            aegis.command("aegis", ["registry", "login", &host, "-u", "me", "--password-stdin"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
        aegis_e2e::wait_output(child)
    };
    let wrong = login("wrong").expect_code(1);
    assert!(wrong.err().contains("does not accept the user name and the password"), "{}", wrong.err());
    login("hunter2").expect_ok();
    aegis.aegis(["image", "pull", &name]).expect_ok();
    assert!(aegis.aegis(["registry", "list"]).expect_ok().out().contains(&host));
    aegis.aegis(["registry", "logout", &host]).expect_ok();
    aegis.aegis(["image", "pull", &name]).expect_code(1);
}
