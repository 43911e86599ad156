//! Files of guests, in and out.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use aegis_api::ErrorCode;
use aegis_client::{Action, Client, ClientError};
use aegis_copy::{Owners, Unpacking, pack, unpack};
use aegis_types::{CopyReport, FileKind, InstanceState};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::support::{Host, within};

const PLAIN: Unpacking<'static> =
    Unpacking { owners: Owners::Caller, special_bits: false, through_links: false, root: None };

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn packed(path: &Path, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(path, name.as_bytes(), false, &mut bytes).unwrap();
    bytes
}

async fn send(client: &Client, to: &Path, tar: &[u8]) -> Result<CopyReport, ClientError> {
    let (pieces, queue) = mpsc::channel::<io::Result<Bytes>>(4);
    let tar = tar.to_vec();
    tokio::spawn(async move {
        for piece in tar.chunks(10_000) {
            if pieces.send(Ok(Bytes::copy_from_slice(piece))).await.is_err() {
                return;
            }
        }
    });
    within(client.write_files("web", text(to), false, queue)).await
}

async fn receive(client: &Client, from: &Path) -> (Vec<u8>, CopyReport) {
    let mut download = within(client.read_files("web", text(from), false)).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = within(download.next()).await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    (bytes, download.report().clone())
}

#[tokio::test]
async fn a_tree_goes_in_and_comes_back() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    let dir = host.home.scratch();
    let (from, guest, back) = (dir.join("from"), dir.join("guest"), dir.join("back"));
    for path in [&from, &guest, &back] {
        fs::create_dir(path).unwrap();
    }
    let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(from.join("big"), &content).unwrap();
    fs::set_permissions(from.join("big"), Permissions::from_mode(0o640)).unwrap();
    symlink("big", from.join("link")).unwrap();
    // A guest at rest is woken for it.
    host.client.action("web", Action::Pause).await.unwrap();
    let report = send(&host.client, &guest, &packed(&from, "tree")).await.unwrap();
    assert_eq!((report.is_complete(), report.entries), (true, 3), "{report:?}");
    assert_eq!(host.info(&id).await.state, InstanceState::Running);
    let stat = host.client.file_stat("web", text(&guest.join("tree/big")), true).await.unwrap();
    assert_eq!((stat.kind, stat.size, stat.mode), (FileKind::File, content.len() as u64, 0o640));
    let (tar, report) = receive(&host.client, &guest.join("tree")).await;
    assert_eq!((report.is_complete(), report.entries), (true, 3), "{report:?}");
    unpack(&back, &tar[..], &PLAIN).unwrap();
    assert!(fs::read(back.join("tree/big")).unwrap() == content);
    assert_eq!(fs::read_link(back.join("tree/link")).unwrap(), Path::new("big"));
    let (before, after) = (from.join("big").metadata().unwrap(), back.join("tree/big").metadata().unwrap());
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    assert_eq!(host.info(&id).await.active_execs, 0);
    host.end().await;
}

#[tokio::test]
async fn what_cannot_be_copied_is_told_and_the_rest_is_copied() {
    let host = Host::start().await;
    host.sleeper("web").await;
    let dir = host.home.scratch();
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("good"), "good").unwrap();
    drop(std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap());
    let (tar, report) = receive(&host.client, &tree).await;
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert_eq!(report.problems[0].path, "tree/socket");
    fs::create_dir_all(dir.join("to/tree/good")).unwrap();
    let report = send(&host.client, &dir.join("to"), &tar).await.unwrap();
    assert_eq!(report.problems[0].error, "a directory is in the way");
    let error = host.client.read_files("web", "/no/such/file", false).await.err().unwrap();
    assert!(matches!(error, ClientError::Api { status: 404, body } if body.code == ErrorCode::FileNotFound));
    let error = send(&host.client, &tree.join("good"), &tar).await.unwrap_err();
    assert!(error.to_string().contains("cannot use"), "{error}");
    let error = send(&host.client, &tree, &vec![7; 3_000_000]).await.unwrap_err();
    assert!(matches!(error, ClientError::Api { status: 400, .. }), "{error:?}");
    let error = send(&host.client, &tree, &tar[..700]).await.unwrap_err();
    assert!(matches!(error, ClientError::Api { status: 400, .. }), "{error:?}");
    host.end().await;
}
