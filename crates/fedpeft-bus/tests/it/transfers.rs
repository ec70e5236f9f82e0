//! Transfers over connections that break, by processes that are killed, among several writers.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use fedpeft_bus::{Bus, BusConfig, BusError, UploadKey};
use fedpeft_protocol::{Digest, subject};
use fedpeft_testkit::{NatsServer, Proxy, Way};

use crate::{blobs::noise, client_id, run_id};

const CHUNK: u64 = 128 * 1024;
/// Chunks in flight when a connection breaks, 16 up and 32 down, with their headers.
const UP_WINDOW: u64 = 16 * (CHUNK + 512);
const DOWN_WINDOW: u64 = 32 * (CHUNK + 512);

async fn connect(url: String) -> Bus {
    Bus::connect(&BusConfig { server: url, creds: None, tls: Default::default(), name: "test".into() })
        .await
        .unwrap()
}

/// Messages in the stream behind an object store.
async fn stored(server: &NatsServer, bucket: &str) -> u64 {
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(format!("OBJ_{bucket}")).await.unwrap();
    stream.get_info().await.unwrap().state.messages
}

/// Chunks and metadata of a blob.
fn messages(size: u64) -> u64 {
    size.div_ceil(CHUNK) + 1
}

/// One per mille of a transfer, and one message: headers, subjects, protocol.
fn overhead(size: u64) -> u64 {
    size / 200 + 64 * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_over_a_breaking_connection_sends_a_window_twice_at_most() {
    let server = NatsServer::start().await;
    let direct = server.bus().await;
    let proxy = Proxy::start(&server.url()).await;
    let bus = connect(proxy.url()).await;
    let (size, cuts) = (40_000_000, 3);
    let bytes = noise(size);
    let source = server.folder().join("source");
    std::fs::write(&source, &bytes).unwrap();
    proxy.cut_after(Way::Up, 9_000_000);
    let mut left = cuts - 1;
    let mut seen = Vec::new();
    let stored_blob = bus
        .put_blob_file(&source, |safe| {
            seen.push(safe);
            if left > 0 && safe > (cuts - left) * 12_000_000 {
                left -= 1;
                proxy.cut_after(Way::Up, 3_000_000);
            }
        })
        .await
        .unwrap();
    assert_eq!(left, 0);
    assert!(seen.is_sorted() && seen.last() == Some(&(size as u64)));
    let most = size as u64 + cuts * UP_WINDOW;
    assert!(stored_blob.measured.payload <= most, "{:?}", stored_blob.measured);
    assert!(proxy.passed(Way::Up) <= most + overhead(most), "{}", proxy.passed(Way::Up));
    assert!(direct.get_blob(&stored_blob.digest, size as u64).await.unwrap().0 == bytes);
    // Nothing of the broken attempts is left, and other programs can read it.
    assert_eq!(stored(&server, subject::BLOB_BUCKET).await, messages(size as u64));
    let client = async_nats::connect(server.url()).await.unwrap();
    let store = async_nats::jetstream::new(client).get_object_store(subject::BLOB_BUCKET).await.unwrap();
    let mut object = store.get(stored_blob.digest.to_string()).await.unwrap();
    let mut read = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut object, &mut read).await.unwrap();
    assert!(read == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_over_a_breaking_connection_fetches_a_window_twice_at_most() {
    let server = NatsServer::start().await;
    let size = 40_000_000;
    let bytes = noise(size);
    let stored = server.bus().await.put_blob(bytes.clone()).await.unwrap();
    let proxy = Proxy::start(&server.url()).await;
    let bus = connect(proxy.url()).await;
    let dest = server.folder().join("dest");
    proxy.cut_after(Way::Down, 15_000_000);
    let mut seen = Vec::new();
    let measured =
        bus.get_blob_file(&stored.digest, size as u64, &dest, |done| seen.push(done)).await.unwrap();
    assert!(seen.is_sorted() && seen.last() == Some(&(size as u64)));
    assert!(std::fs::read(&dest).unwrap() == bytes);
    assert_eq!(measured.payload, size as u64, "what was counted arrived");
    let most = size as u64 + DOWN_WINDOW;
    assert!(proxy.passed(Way::Down) <= most + overhead(most), "{}", proxy.passed(Way::Down));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_of_a_client_goes_on_and_is_purged_in_one_step() {
    let server = NatsServer::start().await;
    let direct = server.bus().await;
    let proxy = Proxy::start(&server.url()).await;
    let bus = connect(proxy.url()).await;
    let (run, other, client) = (run_id("r"), run_id("r2"), client_id("c-1"));
    let key = UploadKey { run: &run, round: 3, client: &client };
    let bytes = noise(12_345_678);
    let size = bytes.len() as u64;
    proxy.cut_after(Way::Up, 5_000_000);
    let upload = bus.put_upload(key, bytes.clone()).await.unwrap();
    assert!(upload.measured.payload <= size + UP_WINDOW, "{:?}", upload.measured);
    assert_eq!(bus.put_upload(key, bytes.clone()).await.unwrap().measured.payload, 0);
    let (_, fetched) = fetch(&direct, key, &upload.digest, size).await.unwrap();
    assert!(fetched == bytes);
    // Another run's equal upload is another one.
    let again = UploadKey { run: &other, ..key };
    bus.put_upload(again, bytes.clone()).await.unwrap();
    direct.purge_upload(key, &upload.digest).await.unwrap();
    direct.purge_upload(key, &upload.digest).await.unwrap();
    assert!(matches!(fetch(&direct, key, &upload.digest, size).await, Err(BusError::NoBlob { .. })));
    assert!(fetch(&direct, again, &upload.digest, size).await.unwrap().1 == bytes);
    // Its claim stays beside its metadata: the store takes no rollups.
    assert_eq!(stored(&server, subject::UPLOAD_BUCKET).await, messages(size) + 1);
    assert!(!direct.has_blob(&upload.digest).await.unwrap());
    // After a purge it begins from nothing.
    assert!(bus.put_upload(key, bytes.clone()).await.unwrap().measured.payload >= size);
    assert!(fetch(&direct, key, &upload.digest, size).await.unwrap().1 == bytes);
}

async fn fetch(bus: &Bus, key: UploadKey<'_>, digest: &Digest, size: u64) -> Result<(u64, Bytes), BusError> {
    use std::io::{Read, Seek};
    let mut file = tempfile::tempfile().unwrap();
    let measured = bus.get_upload(key, digest, size, file.try_clone().unwrap()).await?;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    Ok((measured.total, bytes.into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_of_other_sizes_and_bytes_are_refused_by_name() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let (run, client) = (run_id("r"), client_id("c"));
    let key = UploadKey { run: &run, round: 1, client: &client };
    let upload = bus.put_upload(key, noise(300_000)).await.unwrap();
    let fetched = fetch(&bus, key, &upload.digest, 299_999).await;
    assert!(matches!(fetched, Err(BusError::BlobTooLarge { size: 300_000, limit: 299_999, .. })));
    let fetched = fetch(&bus, key, &upload.digest, 300_001).await;
    assert!(matches!(fetched, Err(BusError::Corrupt { .. })), "{fetched:?}");
    let fetched = fetch(&bus, UploadKey { round: 2, ..key }, &upload.digest, 300_000).await;
    assert!(matches!(fetched, Err(BusError::NoBlob { .. })));
    let others = client_id("d");
    let fetched = fetch(&bus, UploadKey { client: &others, ..key }, &upload.digest, 300_000).await;
    assert!(matches!(fetched, Err(BusError::NoBlob { .. })));
}

/// A writer that is silent but not dead: another one takes over, and not a byte of the first gets in any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_replaced_writes_no_more() {
    let server = NatsServer::start().await;
    let direct = server.bus().await;
    let proxy = Proxy::start(&server.url()).await;
    let slow = connect(proxy.url()).await;
    let bytes = noise(20_000_000);
    let size = bytes.len() as u64;
    proxy.delay(Duration::from_millis(20));
    let (started, first) = tokio::sync::oneshot::channel();
    let source = server.folder().join("source");
    std::fs::write(&source, &bytes).unwrap();
    let upload = tokio::spawn(async move {
        let mut started = Some(started);
        let progress = |_| {
            if let Some(started) = started.take() {
                let _ = started.send(());
            }
        };
        slow.put_blob_file(&source, progress).await
    });
    first.await.unwrap();
    proxy.silence();
    let taken_over = direct.put_blob(bytes.clone()).await.unwrap();
    assert!(taken_over.measured.payload < size, "{taken_over:?}");
    proxy.delay(Duration::ZERO);
    proxy.speak();
    let late = upload.await.unwrap().unwrap();
    assert!(late.measured.payload < size + UP_WINDOW, "{late:?}");
    assert!(direct.get_blob(&late.digest, size).await.unwrap().0 == bytes);
    assert_eq!(stored(&server, subject::BLOB_BUCKET).await, messages(size));
}

/// What a test child does: `upload` or `download`, server, file, digest.
const CHILD: &str = "FEDPEFT_TEST_TRANSFER";

/// Not a test: what the tests below kill.
#[tokio::test]
#[ignore = "run as a child process by other tests"]
async fn child() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let [what, url, path, digest, size]: [&str; 5] =
        order.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
    let (bus, path) = (connect(url.into()).await, Path::new(path));
    let (digest, size) = (digest.parse().unwrap(), size.parse().unwrap());
    let done = path.with_extension("progress");
    let progress = |bytes: u64| std::fs::write(&done, bytes.to_string()).unwrap();
    match what {
        "upload" => drop(bus.put_blob_file_as(digest, size, path, progress).await.unwrap()),
        _ => drop(bus.get_blob_file(&digest, size, path, progress).await.unwrap()),
    }
}

/// Starts [`child`] and kills it once it has moved `bytes`; returns what it had moved.
async fn kill_after(bytes: u64, what: &str, url: &str, path: &Path, digest: &Digest, size: u64) -> u64 {
    let mut child = start(&format!("{what} {url} {} {digest} {size}", path.display()));
    let moved = || {
        let text = std::fs::read_to_string(path.with_extension("progress")).unwrap_or_default();
        text.parse().unwrap_or(0)
    };
    loop {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        if moved() >= bytes {
            child.kill().unwrap();
            child.wait().unwrap();
            return moved().max(bytes);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn start(order: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "transfers::child", "--ignored"]).env(CHILD, order);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_processes_go_on_where_they_were() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let proxy = Proxy::start(&server.url()).await;
    // So that there is time to kill.
    proxy.delay(Duration::from_millis(5));
    let bytes = noise(30_000_000);
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let source: PathBuf = server.folder().join("source");
    std::fs::write(&source, &bytes).unwrap();
    let safe = kill_after(8_000_000, "upload", &proxy.url(), &source, &digest, size).await;
    let resumed = bus.put_blob_file(&source, |_| {}).await.unwrap();
    assert!(resumed.measured.payload <= size - safe + CHUNK + 2048, "{safe} {resumed:?}");
    assert_eq!(stored(&server, subject::BLOB_BUCKET).await, messages(size));

    let folder = server.folder().join("cache");
    std::fs::create_dir(&folder).unwrap();
    let dest = folder.join("dest");
    let there = kill_after(8_000_000, "download", &proxy.url(), &dest, &digest, size).await;
    assert!(!dest.exists());
    let measured = bus.get_blob_file(&digest, size, &dest, |_| {}).await.unwrap();
    // The last chunks a process wrote may not have reached the file.
    assert!(measured.payload <= size - there + 32 * CHUNK, "{there} {measured:?}");
    assert!(std::fs::read(&dest).unwrap() == bytes);
    std::fs::remove_file(dest.with_extension("progress")).unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "no part is left");
}

#[tokio::test]
async fn a_part_is_never_trusted() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let bytes = noise(3_000_000);
    let stored = bus.put_blob(bytes.clone()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (dest, part) = (folder.path().join("dest"), folder.path().join(format!(".{}.part", stored.digest)));
    let mut flipped = bytes[..1_000_000].to_vec();
    flipped[10] ^= 1;
    let mut other = bytes.to_vec();
    other[2_999_999] ^= 1;
    let good = bytes[..1_000_001].to_vec();
    let whole = bytes.to_vec();
    let too_long = vec![0; 3_000_001];
    for (left, expected) in
        [(flipped, 3_000_000), (other, 3_000_000), (good, 2_082_496), (whole, 0), (too_long, 3_000_000)]
    {
        std::fs::write(&part, left).unwrap();
        let measured = bus.get_blob_file(&stored.digest, 3_000_000, &dest, |_| {}).await.unwrap();
        assert!((expected..=expected + 2 * CHUNK).contains(&measured.payload), "{expected} {measured:?}");
        assert!(std::fs::read(&dest).unwrap() == bytes);
        assert!(!part.exists());
        std::fs::remove_file(&dest).unwrap();
    }
    // Several at once, of one process or of two: each gets a whole file.
    let fetching = (0..3).map(|_| bus.get_blob_file(&stored.digest, 3_000_000, &dest, |_| {}));
    for fetched in futures::future::join_all(fetching).await {
        fetched.unwrap();
    }
    assert!(std::fs::read(&dest).unwrap() == bytes);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_damaged_chunk_is_found_where_it_lies() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let bytes = noise(600_000);
    let stored = bus.put_blob(bytes.clone()).await.unwrap();
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(format!("OBJ_{}", subject::BLOB_BUCKET)).await.unwrap();
    // The same messages again, one byte of the third chunk changed. The broker checks claims, not bytes.
    let info = stream.get_info().await.unwrap().state;
    let mut all = Vec::new();
    for sequence in info.first_sequence..=info.last_sequence {
        if let Ok(message) = stream.direct_get(sequence).await {
            all.push(message);
        }
    }
    stream.purge().await.unwrap();
    for (at, message) in all.into_iter().enumerate() {
        let mut headers = async_nats::HeaderMap::new();
        if let Some(mark) = message.headers.get(subject::CHUNK_HEADER) {
            headers.insert(subject::CHUNK_HEADER, mark.as_str());
        }
        let mut payload = message.payload.to_vec();
        if at == 2 {
            payload[77] ^= 1;
        }
        let sent = jetstream.publish_with_headers(message.subject, headers, payload.into()).await.unwrap();
        sent.await.unwrap();
    }
    let error = bus.get_blob(&stored.digest, 600_000).await.unwrap_err();
    assert!(matches!(error, BusError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("bytes 262144 to 393216"), "{error}");
}

/// Somebody stored other bytes under the digest and was killed: the next writer does not build on them.
#[tokio::test]
async fn wrong_chunks_of_a_broken_upload_are_replaced() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let bytes = noise(1_000_000);
    let mut wrong = bytes.to_vec();
    wrong[400_000] ^= 1;
    let source = server.folder().join("source");
    std::fs::write(&source, &wrong).unwrap();
    let digest = Digest::of(&bytes);
    let corrupt = bus.put_blob_file_as(digest, 1_000_000, &source, |_| {}).await;
    assert!(matches!(corrupt, Err(BusError::Corrupt { .. })));
    assert!(!bus.has_blob(&digest).await.unwrap());
    assert_eq!(stored(&server, subject::BLOB_BUCKET).await, 1, "a note that it is not there");
    // Broken off instead, by a process that dies at its first chunks.
    {
        let mut seen = 0;
        let (bus, source) = (bus.clone(), source.clone());
        let broken = tokio::spawn(async move {
            let progress = |safe| {
                seen = safe;
                assert!(safe < 900_000, "dies");
            };
            bus.put_blob_file_as(digest, 1_000_000, &source, progress).await.map(|_| seen)
        });
        assert!(broken.await.is_err());
    }
    let healed = bus.put_blob(bytes.clone()).await.unwrap();
    assert!(healed.measured.payload >= 1_000_000);
    assert!(bus.get_blob(&digest, 1_000_000).await.unwrap().0 == bytes);
    assert_eq!(stored(&server, subject::BLOB_BUCKET).await, messages(1_000_000));
}

#[tokio::test]
async fn a_full_store_is_one_clear_error() {
    let server = NatsServer::start_with_config("jetstream { max_file_store: 20MB }").await;
    let bus = server.bus().await;
    let small = bus.put_blob(noise(3_000_000)).await.unwrap();
    let bytes = noise(40_000_000);
    let (run, client) = (run_id("r"), client_id("c"));
    let key = UploadKey { run: &run, round: 1, client: &client };
    for error in [
        bus.put_blob(bytes.clone()).await.unwrap_err(),
        bus.put_upload(key, bytes.clone()).await.unwrap_err(),
    ] {
        assert!(matches!(error, BusError::StoreFull { .. }), "{error:?}");
        assert!(error.to_string().contains("is full"), "{error}");
    }
    assert!(!bus.has_blob(&Digest::of(&bytes)).await.unwrap());
    assert!(matches!(fetch(&bus, key, &Digest::of(&bytes), 40_000_000).await, Err(BusError::NoBlob { .. })));
    assert_eq!(bus.get_blob(&small.digest, 3_000_000).await.unwrap().0.len(), 3_000_000);
}

/// A limit on the size of files stands for a disk that is full.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_one_clear_error_and_leaves_nothing() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let stored = bus.put_blob(noise(6_000_000)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dest = folder.path().join("dest");
    let order = format!("download {} {} {} {}", server.url(), dest.display(), stored.digest, stored.size);
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; ulimit -f 4000; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap());
    command.args(["--exact", "transfers::child", "--ignored", "--nocapture"]).env(CHILD, order);
    let output = tokio::task::block_in_place(|| command.output().unwrap());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("File {") && said.contains("FileTooLarge"), "{said}");
    std::fs::remove_file(dest.with_extension("progress")).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // With room again it works.
    bus.get_blob_file(&stored.digest, stored.size, &dest, |_| {}).await.unwrap();
}
