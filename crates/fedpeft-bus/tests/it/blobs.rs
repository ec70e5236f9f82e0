use bytes::Bytes;
use fedpeft_bus::{BusError, Measured, RecentBlobs, Stored};
use fedpeft_protocol::{Digest, subject};
use fedpeft_testkit::NatsServer;

/// Bytes that differ everywhere, so that a chunk out of place is noticed.
pub(crate) fn noise(size: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::from_fn(|| Some(next())).take(size / 8 + 1).flatten().collect();
    bytes.truncate(size);
    bytes.into()
}

#[tokio::test]
async fn ten_megabytes_round_trip_through_memory_and_files() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let bytes = noise(10_000_000);
    let source = server.folder().join("source");
    std::fs::write(&source, &bytes).unwrap();
    let mut seen = Vec::new();
    let stored = bus.put_blob_file(&source, |done| seen.push(done)).await.unwrap();
    assert_eq!((stored.digest, stored.size), (Digest::of(&bytes), 10_000_000));
    assert_eq!(seen.last(), Some(&10_000_000));
    assert!(seen.is_sorted());
    // Subjects, headers and metadata cost less than four parts in a thousand.
    assert!(stored.measured.payload >= 10_000_000 && stored.measured.total < 10_040_000);

    assert!(bus.has_blob(&stored.digest).await.unwrap());
    assert_eq!(bus.blob_size(&stored.digest).await.unwrap(), Some(10_000_000));
    let (fetched, measured) = bus.get_blob(&stored.digest, 10_000_000).await.unwrap();
    assert!(fetched == bytes);
    assert!(measured.payload == 10_000_000 && measured.total < 10_040_000);

    let dest = server.folder().join("dest");
    let mut done = 0;
    bus.get_blob_file(&stored.digest, 10_000_000, &dest, |bytes| done = bytes).await.unwrap();
    assert_eq!(done, 10_000_000);
    assert!(std::fs::read(&dest).unwrap() == bytes);
}

#[tokio::test]
async fn storing_again_costs_nothing_and_deleting_frees() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    for bytes in [Bytes::new(), noise(1), noise(128 * 1024), noise(128 * 1024 + 1)] {
        let stored = bus.put_blob(bytes.clone()).await.unwrap();
        assert_ne!(stored.measured, Measured::default());
        assert_eq!(bus.put_blob(bytes.clone()).await.unwrap().measured, Measured::default());
        assert!(bus.get_blob(&stored.digest, 1 << 20).await.unwrap().0 == bytes);
        bus.delete_blob(&stored.digest).await.unwrap();
        bus.delete_blob(&stored.digest).await.unwrap();
        assert!(!bus.has_blob(&stored.digest).await.unwrap());
        assert!(matches!(bus.get_blob(&stored.digest, 1 << 20).await, Err(BusError::NoBlob { .. })));
        assert_ne!(bus.put_blob(bytes.clone()).await.unwrap().measured, Measured::default());
        assert!(bus.get_blob(&stored.digest, 1 << 20).await.unwrap().0 == bytes);
    }
}

#[tokio::test]
async fn concurrent_uploads_of_one_blob_leave_one_copy() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let bytes = noise(1_000_000);
    let uploads = (0..6).map(|_| {
        let (bus, bytes) = (bus.clone(), bytes.clone());
        tokio::spawn(async move { bus.put_blob(bytes).await.unwrap().digest })
    });
    let digests = futures::future::join_all(uploads).await;
    let digest = *digests[0].as_ref().unwrap();
    assert!(bus.get_blob(&digest, 1_000_000).await.unwrap().0 == bytes);
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(format!("OBJ_{}", subject::BLOB_BUCKET)).await.unwrap();
    // Eight chunks and the metadata.
    assert_eq!(stream.get_info().await.unwrap().state.messages, 9);
}

#[tokio::test]
async fn limits_and_sizes_are_kept() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let stored = bus.put_blob(noise(1000)).await.unwrap();
    let error = bus.get_blob(&stored.digest, 999).await.unwrap_err();
    assert!(matches!(error, BusError::BlobTooLarge { size: 1000, limit: 999, .. }));
    let dest = server.folder().join("dest");
    let error = bus.get_blob_file(&stored.digest, 1001, &dest, |_| {}).await.unwrap_err();
    assert!(matches!(error, BusError::Corrupt { .. }));
    let error = bus.put_blob_file(&server.folder().join("missing"), |_| {}).await.unwrap_err();
    assert!(matches!(error, BusError::File { .. }));
    let nowhere = server.folder().join("no/such/folder");
    let error = bus.get_blob_file(&stored.digest, 1000, &nowhere, |_| {}).await.unwrap_err();
    assert!(matches!(error, BusError::File { .. }));
}

#[tokio::test]
async fn what_many_ask_for_is_fetched_once() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let small = [bus.put_blob(noise(300_000)).await.unwrap(), bus.put_blob(noise(5)).await.unwrap()];
    let large = bus.put_blob(noise(2_000_000)).await.unwrap();
    let recent = RecentBlobs::default();
    let ask = async |stored: &Stored| recent.get(&bus, &stored.digest, stored.size).await.unwrap();
    for stored in &small {
        let asked = futures::future::join_all((0..9).map(|_| ask(stored))).await;
        assert!(asked.iter().all(|(bytes, _)| Digest::of(bytes) == stored.digest));
        assert_eq!(asked.iter().filter(|(_, measured)| measured.is_some()).count(), 1);
    }
    // An adapter and what goes beside it are both kept; what fits no message is not.
    assert!(ask(&small[0]).await.1.is_none() && ask(&small[1]).await.1.is_none());
    assert!(ask(&large).await.1.is_some() && ask(&large).await.1.is_some());
    let other = bus.put_blob(noise(77)).await.unwrap();
    assert!(ask(&other).await.1.is_some() && ask(&small[0]).await.1.is_some());
    let error = recent.get(&bus, &Digest::of("nowhere"), 9).await.unwrap_err();
    assert!(matches!(error, BusError::NoBlob { .. }));
}

/// Whoever may write to the store could put other bytes under a digest.
#[tokio::test]
async fn wrong_bytes_under_a_digest_are_refused() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let store = async_nats::jetstream::new(client).get_object_store(subject::BLOB_BUCKET).await.unwrap();
    let digest = Digest::of(b"what was meant");
    store.put(digest.to_string().as_str(), &mut &b"something else"[..]).await.unwrap();
    assert!(matches!(bus.get_blob(&digest, 1000).await, Err(BusError::Corrupt { .. })));
    let dest = server.folder().join("dest");
    let error = bus.get_blob_file(&digest, 14, &dest, |_| {}).await.unwrap_err();
    assert!(matches!(error, BusError::Corrupt { .. }));
    assert!(!dest.exists());
    let left: Vec<_> = std::fs::read_dir(server.folder()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["store"]);
}

#[tokio::test]
async fn blobs_are_ordinary_objects() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let bytes = noise(300_000);
    let stored = bus.put_blob(bytes.clone()).await.unwrap();
    let client = async_nats::connect(server.url()).await.unwrap();
    let store = async_nats::jetstream::new(client).get_object_store(subject::BLOB_BUCKET).await.unwrap();
    let mut object = store.get(stored.digest.to_string()).await.unwrap();
    let mut read = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut object, &mut read).await.unwrap();
    assert!(read == bytes);
}

#[tokio::test]
async fn a_download_goes_on_after_the_broker_crashed() {
    let mut server = NatsServer::start().await;
    let bus = server.bus().await;
    let bytes = noise(30_000_000);
    let stored = bus.put_blob(bytes.clone()).await.unwrap();
    let dest = server.folder().join("dest");
    let (started, first_chunk) = tokio::sync::oneshot::channel();
    let download = {
        let (bus, dest) = (bus.clone(), dest.clone());
        let mut started = Some(started);
        tokio::spawn(async move {
            let progress = |_| {
                if let Some(started) = started.take() {
                    started.send(()).unwrap();
                }
            };
            bus.get_blob_file(&stored.digest, stored.size, &dest, progress).await
        })
    };
    first_chunk.await.unwrap();
    server.crash().await;
    server.resume().await;
    download.await.unwrap().unwrap();
    assert!(std::fs::read(&dest).unwrap() == bytes);
}

#[tokio::test]
async fn an_upload_goes_on_after_the_broker_crashed_and_leaves_nothing_behind() {
    let mut server = NatsServer::start().await;
    let bus = server.bus().await;
    let bytes = noise(30_000_000);
    let source = server.folder().join("source");
    std::fs::write(&source, &bytes).unwrap();
    let (started, first_chunk) = tokio::sync::oneshot::channel();
    let upload = {
        let bus = bus.clone();
        let mut started = Some(started);
        tokio::spawn(async move {
            let progress = |_| {
                if let Some(started) = started.take() {
                    started.send(()).unwrap();
                }
            };
            bus.put_blob_file(&source, progress).await
        })
    };
    first_chunk.await.unwrap();
    server.crash().await;
    server.resume().await;
    let stored = upload.await.unwrap().unwrap();
    assert!(stored.measured.payload > 30_000_000);
    assert!(bus.get_blob(&stored.digest, stored.size).await.unwrap().0 == bytes);
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(format!("OBJ_{}", subject::BLOB_BUCKET)).await.unwrap();
    assert_eq!(stream.get_info().await.unwrap().state.messages, 30_000_000_u64.div_ceil(128 * 1024) + 1);
}
