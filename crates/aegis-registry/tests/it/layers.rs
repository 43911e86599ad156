//! Downloading layers.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aegis_registry::{Problem, RegistryError};

use crate::content::*;
use crate::server::{Body, Reply, Request, Server};

const SIZE: usize = 300_000;

/// A registry with one blob, whose requests are answered by this.
async fn blob(
    answer: impl Fn(&Request, usize, &[u8]) -> Option<Reply> + Send + Sync + 'static,
) -> (Server, Vec<u8>) {
    let data = bytes(7, SIZE);
    let mut content = Content::default();
    content.blob(&data);
    let sent = data.clone();
    let server = Server::start(move |request, before| {
        let special = if request.target == "/v2/" { None } else { answer(request, before, &sent) };
        special.unwrap_or_else(|| content.answer(request))
    })
    .await;
    (server, data)
}

#[tokio::test]
async fn a_layer_becomes_a_file() {
    for chunked in [false, true] {
        let (server, data) =
            blob(move |_, _, data| chunked.then(|| Reply::new(200).with(Body::Chunked(data.to_vec())))).await;
        let client = Client::new();
        let reported = Mutex::new(Vec::new());
        let progress = |bytes| reported.lock().unwrap().push(bytes);
        let (part, complete) = (client.part(), client.complete());
        let layer = layer(&data);
        client.registry.fetch(&name(&server, ":t"), &layer, &part, &complete, &progress).await.unwrap();
        assert_eq!(std::fs::read(&complete).unwrap(), data);
        assert_eq!(std::fs::metadata(&complete).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!part.exists());
        let reported = reported.into_inner().unwrap();
        assert!(reported.is_sorted(), "{reported:?}");
        assert_eq!((reported[0], reported.last()), (0, Some(&(SIZE as u64))));
        // Once it is there, the registry is left alone.
        let asked = server.requests().len();
        client.fetch(&server, &layer).await.unwrap();
        assert_eq!(server.requests().len(), asked);
    }
}

#[tokio::test]
async fn an_empty_layer_needs_no_request() {
    let (server, _) = blob(|_, _, _| None).await;
    let client = Client::new();
    client.fetch(&server, &layer(b"")).await.unwrap();
    assert_eq!(std::fs::read(client.complete()).unwrap(), b"");
}

#[tokio::test]
async fn a_download_that_was_cut_goes_on() {
    let (server, data) = blob(|_, before, data| {
        (before == 0).then(|| Reply::new(200).with(Body::Cut(data.to_vec(), 100_000)))
    })
    .await;
    let client = Client::new();
    client.fetch(&server, &layer(&data)).await.unwrap();
    assert_eq!(std::fs::read(client.complete()).unwrap(), data);
    let requests = server.requests_for("blobs/");
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].header("range"), None);
    let from = range(requests[1].header("range").unwrap());
    assert!(from > 0 && from <= 100_000, "{from}");
}

#[tokio::test]
async fn a_later_call_goes_on_where_an_earlier_one_ended() {
    let (server, data) = blob(|_, _, _| None).await;
    let client = Client::new();
    std::fs::write(client.part(), &data[..200_000]).unwrap();
    client.fetch(&server, &layer(&data)).await.unwrap();
    assert_eq!(std::fs::read(client.complete()).unwrap(), data);
    assert_eq!(server.requests_for("blobs/")[0].header("range"), Some("bytes=200000-"));
}

#[tokio::test]
async fn a_file_that_is_complete_is_only_verified() {
    let (server, data) = blob(|_, _, _| Some(Reply::new(500))).await;
    let client = Client::new();
    std::fs::write(client.part(), &data).unwrap();
    client.fetch(&server, &layer(&data)).await.unwrap();
    assert_eq!(std::fs::read(client.complete()).unwrap(), data);
    assert!(server.requests_for("blobs/").is_empty());
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_sends_everything() {
    let (server, data) = blob(|_, _, data| Some(Reply::ok(data.to_vec()))).await;
    let client = Client::new();
    std::fs::write(client.part(), &data[..200_000]).unwrap();
    client.fetch(&server, &layer(&data)).await.unwrap();
    assert_eq!(std::fs::read(client.complete()).unwrap(), data);
}

#[tokio::test]
async fn a_server_that_refuses_a_range_is_asked_for_everything() {
    let (server, data) = blob(|request, _, data| {
        Some(if request.header("range").is_some() { Reply::new(416) } else { Reply::ok(data.to_vec()) })
    })
    .await;
    let client = Client::new();
    std::fs::write(client.part(), &data[..200_000]).unwrap();
    client.fetch(&server, &layer(&data)).await.unwrap();
    assert_eq!(std::fs::read(client.complete()).unwrap(), data);
}

#[tokio::test]
async fn a_damaged_beginning_is_replaced() {
    // Wrong bytes, too many bytes.
    for old in [bytes(8, 200_000), bytes(7, SIZE + 1), bytes(8, SIZE)] {
        let (server, data) = blob(|_, _, _| None).await;
        let client = Client::new();
        std::fs::write(client.part(), old).unwrap();
        client.fetch(&server, &layer(&data)).await.unwrap();
        assert_eq!(std::fs::read(client.complete()).unwrap(), data);
    }
}

#[tokio::test]
async fn another_range_than_was_asked_for_is_refused() {
    for said in
        ["bytes 100-299999/300000", "bytes 200000-299999/300001", "bytes 200000-299998/300000", "nonsense"]
    {
        let (server, data) = blob(move |_, _, data| {
            Some(Reply::new(206).header("content-range", said).with(Body::Whole(data[200_000..].to_vec())))
        })
        .await;
        let client = Client::new();
        std::fs::write(client.part(), &data[..200_000]).unwrap();
        let problem = problem(client.fetch(&server, &layer(&data)).await);
        assert!(matches!(problem, Problem::Malformed(_)), "{said}: {problem:?}");
        // What was there is still good.
        assert_eq!(std::fs::read(client.part()).unwrap(), &data[..200_000]);
    }
}

#[tokio::test]
async fn wrong_content_leaves_nothing() {
    let (server, data) = blob(|_, _, _| Some(Reply::ok(bytes(9, SIZE)))).await;
    let client = Client::new();
    let error = client.fetch(&server, &layer(&data)).await.unwrap_err();
    let said = text(&error);
    assert!(said.contains("does not match its digest"), "{said}");
    assert!(matches!(problem(Err::<(), _>(error)), Problem::WrongDigest { .. }));
    assert!(!client.part().exists() && !client.complete().exists());
}

#[tokio::test]
async fn more_or_less_than_announced_is_refused() {
    type Answer = fn(&[u8]) -> Body;
    let endless: Answer = |_| Body::Endless(vec![0; 1 << 16]);
    let longer: Answer = |data| Body::Whole([data, b"x"].concat());
    let chunked: Answer = |data| Body::Chunked([data, b"x"].concat());
    let shorter: Answer = |data| Body::Whole(data[1..].to_vec());
    for (body, large) in [(endless, true), (longer, false), (chunked, true), (shorter, false)] {
        let (server, data) = blob(move |_, _, data| Some(Reply::new(200).with(body(data)))).await;
        let client = Client::new();
        let problem = problem(client.fetch(&server, &layer(&data)).await);
        let expected = if large {
            matches!(problem, Problem::TooLarge { .. })
        } else {
            matches!(problem, Problem::WrongSize { .. })
        };
        assert!(expected, "{problem:?}");
        assert!(!client.part().exists() && !client.complete().exists());
    }
}

#[tokio::test]
async fn a_body_without_length_that_ends_early_goes_on() {
    let (server, data) = blob(|_, before, data| {
        (before == 0).then(|| Reply::new(200).with(Body::Chunked(data[..100_000].to_vec())))
    })
    .await;
    let client = Client::new();
    client.fetch(&server, &layer(&data)).await.unwrap();
    assert_eq!(server.requests_for("blobs/")[1].header("range"), Some("bytes=100000-"));
}

#[tokio::test]
async fn a_download_that_stands_still_goes_on_anew() {
    let (server, data) = blob(|_, before, data| {
        (before == 0).then(|| Reply::new(200).with(Body::Stalled(data.to_vec(), 100_000)))
    })
    .await;
    let client = Client::with(|options, _| options.timeouts.stall = Duration::from_millis(300));
    client.fetch(&server, &layer(&data)).await.unwrap();
    assert_eq!(std::fs::read(client.complete()).unwrap(), data);
}

#[tokio::test]
async fn a_server_that_only_stalls_is_given_up_and_the_beginning_is_kept() {
    let (server, data) = blob(|request, _, data| {
        let from = request.header("range").map_or(0, range);
        let rest = data[from..].to_vec();
        let reply = match from {
            0 => Reply::new(200),
            _ => Reply::new(206).header("content-range", &format!("bytes {from}-{}/{SIZE}", SIZE - 1)),
        };
        Some(reply.with(Body::Stalled(rest, 1000)))
    })
    .await;
    let client = Client::with(|options, _| options.timeouts.stall = Duration::from_millis(100));
    let problem = problem(client.fetch(&server, &layer(&data)).await);
    assert!(matches!(problem, Problem::Timeout { .. }), "{problem:?}");
    assert_eq!(std::fs::read(client.part()).unwrap(), &data[..3000]);
}

#[tokio::test]
async fn no_answer_at_all_is_given_up() {
    let server = Server::start(|request, _| {
        if request.target == "/v2/" {
            Reply::ok("{}")
        } else {
            Reply::new(200).with(Body::Stalled(vec![b' '; 10], 0))
        }
    })
    .await;
    let client = Client::with(|options, _| options.timeouts.answer = Duration::from_millis(100));
    let problem = problem(client.resolve(&server, ":t").await);
    assert!(matches!(problem, Problem::Timeout { .. }), "{problem:?}");
}

#[tokio::test]
async fn a_server_with_a_passing_weakness_is_asked_again() {
    for reply in [
        (|| Reply::new(500)) as fn() -> Reply,
        || Reply::new(503).header("retry-after", "0"),
        || Reply::new(429).header("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
        || Reply::new(429),
    ] {
        let (server, data) = blob(move |_, before, _| (before < 2).then(reply)).await;
        Client::new().fetch(&server, &layer(&data)).await.unwrap();
        assert_eq!(server.requests_for("blobs/").len(), 3);
    }
}

#[tokio::test]
async fn a_server_that_stays_weak_is_given_up() {
    let (server, data) = blob(|_, _, _| {
        let said = br#"{"errors": [{"code": "UNAVAILABLE", "message": "maintenance"}]}"#;
        Some(Reply::new(503).with(Body::Whole(said.to_vec())))
    })
    .await;
    let client = Client::new();
    let error = client.fetch(&server, &layer(&data)).await.unwrap_err();
    assert!(text(&error).contains("the answer is 503: maintenance"), "{}", text(&error));
    assert_eq!(server.requests_for("blobs/").len(), 3);
    assert!(!client.part().exists());
}

#[tokio::test]
async fn who_asks_to_be_left_alone_for_long_is() {
    let (server, data) = blob(|_, _, _| Some(Reply::new(429).header("retry-after", "3600"))).await;
    let error = Client::new().fetch(&server, &layer(&data)).await.unwrap_err();
    let said = text(&error);
    assert!(said.contains("to be tried again in 3600 s") && said.contains("aegis registry login"), "{said}");
    assert_eq!(server.requests_for("blobs/").len(), 1);
}

#[tokio::test]
async fn what_will_not_get_better_is_not_asked_again() {
    for status in [400, 403, 404, 501] {
        let (server, data) = blob(move |_, _, _| Some(Reply::new(status))).await;
        assert!(Client::new().fetch(&server, &layer(&data)).await.is_err());
        assert_eq!(server.requests_for("blobs/").len(), 1, "{status}");
    }
}

#[tokio::test]
async fn one_download_serves_all_who_want_it() {
    let sent = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let (server, data) = blob(move |_, _, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        None
    })
    .await;
    let client = Client::new();
    let layer = layer(&data);
    let (one, two, three) = tokio::join!(
        client.fetch(&server, &layer),
        client.fetch(&server, &layer),
        client.fetch(&server, &layer)
    );
    one.and(two).and(three).unwrap();
    assert_eq!(sent.load(Ordering::Relaxed), 1);
    assert_eq!(std::fs::read(client.complete()).unwrap(), data);
    assert!(!client.part().exists());
}

#[tokio::test]
async fn a_dropped_download_can_be_continued() {
    let (server, data) = blob(|_, before, data| {
        (before == 0).then(|| Reply::new(200).with(Body::Stalled(data.to_vec(), 100_000)))
    })
    .await;
    let client = Client::new();
    let (name, layer) = (name(&server, ":t"), layer(&data));
    let (part, complete) = (client.part(), client.complete());
    let (reached, mut seen) = tokio::sync::watch::channel(0);
    let progress = |bytes| {
        reached.send_replace(bytes);
    };
    let fetch = client.registry.fetch(&name, &layer, &part, &complete, &progress);
    tokio::select! {
        ended = fetch => panic!("it cannot end: {ended:?}"),
        _ = seen.wait_for(|bytes| *bytes == 100_000) => {}
    }
    client.fetch(&server, &layer).await.unwrap();
    assert_eq!(std::fs::read(client.complete()).unwrap(), data);
}

#[tokio::test]
async fn the_disk_is_blamed_for_what_it_does() {
    let (server, data) = blob(|_, _, _| None).await;
    let client = Client::new();
    let part = client.dir.path().join("no/such/directory");
    let (name, layer, complete) = (name(&server, ":t"), layer(&data), client.complete());
    let fetched = client.registry.fetch(&name, &layer, &part, &complete, &|_| {}).await;
    assert!(matches!(fetched, Err(RegistryError::File { .. })), "{fetched:?}");
    assert!(server.requests_for("blobs/").is_empty());
}

#[test]
fn downloads_can_be_moved_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    let client = Client::new();
    let name = aegis_types::ImageName::parse("a").unwrap();
    let layer = layer(b"");
    is_send(&client.registry.resolve(&name, "amd64"));
    let (part, complete) = (client.part(), client.complete());
    is_send(&client.registry.fetch(&name, &layer, &part, &complete, &|_| {}));
}
