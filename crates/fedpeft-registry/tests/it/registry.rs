//! Push and pull of small artifacts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use fedpeft_artifacts::{
    Manifest,
    manifest::{
        BackboneSpec, ElementType, FORMAT_VERSION, FileRef, Files, InputSource, InputSpec, MANIFEST_FILE,
        TaskSpec,
    },
};
use fedpeft_bus::{Bus, BusError};
use fedpeft_codec::{Layout, TensorSpec};
use fedpeft_protocol::{
    Digest, ModelName,
    api::{Empty, ModelList, PublishModel},
    model::{FileEntry, ModelVersion},
    round::ByteKind,
    run::ModelRef,
};
use fedpeft_registry::{Cache, Registry, RegistryError, pull, push_folder};
use fedpeft_testkit::NatsServer;

struct Fixture {
    server: NatsServer,
    bus: Bus,
    _registry: Registry,
}

async fn fixture() -> Fixture {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let registry = Registry::start(&bus).await.unwrap();
    Fixture { server, bus, _registry: registry }
}

impl Fixture {
    fn cache(&self) -> Cache {
        Cache::new(self.server.folder().join("cache"))
    }

    /// An artifact folder of `method` on a backbone that all methods share.
    fn artifacts(&self, method: &str) -> PathBuf {
        let folder = self.server.folder().join(method);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("backbone.bin"), vec![7; 2_000_000]).unwrap();
        describe(&folder, method);
        folder
    }

    async fn push(&self, method: &str, name: &str) -> Result<ModelVersion, RegistryError> {
        let name = ModelName::new(name).unwrap();
        push_folder(&self.bus, &self.artifacts(method), &name, |_, _, _| {}).await
    }

    async fn publish(&self, request: &PublishModel) -> Result<ModelVersion, BusError> {
        self.bus.request("models.publish", request).await
    }
}

/// Makes `folder`, which holds a backbone, an artifact folder of `method`.
pub(crate) fn describe(folder: &Path, method: &str) {
    let file = |name: &str| {
        let opened = fs::File::open(folder.join(name)).unwrap();
        let size = opened.metadata().unwrap().len();
        FileRef { name: name.into(), digest: Digest::of_reader(opened).unwrap(), size }
    };
    let graph = |name: &str| {
        fs::write(folder.join(name), format!("{name} of {method}")).unwrap();
        file(name)
    };
    let manifest = Manifest {
        format: FORMAT_VERSION,
        method: method.parse().unwrap(),
        adapter: Layout::new(vec![TensorSpec { name: "w".into(), shape: vec![2] }]).unwrap(),
        excluded: Default::default(),
        inputs: vec![InputSpec {
            name: "x".into(),
            dtype: ElementType::F32,
            shape: vec![1],
            source: InputSource::Values,
        }],
        text: None,
        task: TaskSpec::classification(2),
        backbone: BackboneSpec { values: 500_000, storage: Default::default(), source: Digest::of(b"onnx") },
        opset: 20,
        files: Files {
            training: graph("training_model.onnx"),
            eval: graph("eval_model.onnx"),
            optimizer_sgd: graph("optimizer_sgd.onnx"),
            dp_training: None,
            optimizer_adamw: graph("optimizer_adamw.onnx"),
            checkpoint: graph("checkpoint.safetensors"),
            backbone: file("backbone.bin"),
        },
    };
    fs::write(folder.join(MANIFEST_FILE), manifest.to_json().unwrap()).unwrap();
}

fn request_of(version: &ModelVersion) -> PublishModel {
    let ModelVersion { name, method, manifest, files, .. } = version.clone();
    PublishModel { name, method, manifest, files }
}

fn assert_bad(result: Result<ModelVersion, BusError>, expected: &str) {
    match result {
        Err(BusError::Api(error)) => {
            assert!(error.code == 400 && error.message.contains(expected), "{expected}: {error:?}");
        }
        other => panic!("{expected}: {other:?}"),
    }
}

fn bytes_of(pulled: &fedpeft_registry::Pulled, kind: ByteKind) -> u64 {
    pulled.transfers.iter().filter(|transfer| transfer.kind == kind).map(|transfer| transfer.size).sum()
}

fn same_content(a: &Path, b: &Path) {
    for file in fs::read_dir(a).unwrap().map(|entry| entry.unwrap()) {
        assert_eq!(fs::read(file.path()).unwrap(), fs::read(b.join(file.file_name())).unwrap());
    }
    assert_eq!(fs::read_dir(a).unwrap().count(), fs::read_dir(b).unwrap().count());
}

#[tokio::test]
async fn versions_count_up_and_the_same_artifacts_keep_theirs() {
    let fixture = fixture().await;
    let first = fixture.push("bias", "vit").await.unwrap();
    assert_eq!((first.number, first.method.as_str(), first.files.len()), (1, "bias", 7));
    assert_eq!(fixture.push("bias", "vit").await.unwrap(), first);
    let second = fixture.push("head", "vit").await.unwrap();
    assert_eq!(second.number, 2);
    assert_eq!(fixture.push("bias", "vit-2").await.unwrap().number, 1);

    let get = async |version| {
        let request = ModelRef { name: ModelName::new("vit").unwrap(), version };
        fixture.bus.request::<_, ModelVersion>("models.get", &request).await
    };
    assert_eq!(get(None).await.unwrap(), second);
    assert_eq!(get(Some(1)).await.unwrap(), first);
    assert!(matches!(get(Some(3)).await, Err(BusError::Api(error)) if error.code == 404));
    let list: ModelList = fixture.bus.request("models.list", &Empty {}).await.unwrap();
    let names: Vec<_> = list.models.iter().map(|model| (model.name.as_str(), model.number)).collect();
    assert_eq!(names, [("vit", 1), ("vit", 2), ("vit-2", 1)]);
}

#[tokio::test]
async fn concurrent_publishes_get_different_versions() {
    let fixture = fixture().await;
    let methods = ["bias", "head", "full", "bias", "head", "full"];
    let pushes = methods.map(|method| fixture.push(method, "vit"));
    let mut numbers: Vec<_> = futures::future::join_all(pushes)
        .await
        .into_iter()
        .map(|version| version.unwrap())
        .map(|version| (version.number, version.method))
        .collect();
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3]);
}

#[tokio::test]
async fn a_pull_brings_the_folder_once_and_the_backbone_once_for_all_methods() {
    let fixture = fixture().await;
    let cache = fixture.cache();
    let bias = fixture.push("bias", "vit").await.unwrap();
    let head = fixture.push("head", "vit").await.unwrap();
    let mut progressed = Vec::new();
    let pulled = pull(&fixture.bus, &bias.manifest, &cache, false, |name, done, size| {
        progressed.push((name.to_owned(), done == size));
    })
    .await
    .unwrap();
    assert_eq!(pulled.folder, cache.artifacts(&bias.manifest));
    same_content(&fixture.artifacts("bias"), &pulled.folder);
    assert!(progressed.contains(&("backbone.bin".to_owned(), true)));
    let backbone = bytes_of(&pulled, ByteKind::Backbone);
    assert!((2_000_000..2_010_000).contains(&backbone), "{backbone}");
    assert!(bytes_of(&pulled, ByteKind::Artifacts) > 0);

    let again = pull(&fixture.bus, &bias.manifest, &cache, true, |_, _, _| {}).await.unwrap();
    assert_eq!(again.transfers, []);
    let other = pull(&fixture.bus, &head.manifest, &cache, false, |_, _, _| {}).await.unwrap();
    assert_eq!(bytes_of(&other, ByteKind::Backbone), 0);
    same_content(&fixture.artifacts("head"), &other.folder);
}

#[tokio::test]
async fn of_many_concurrent_pulls_one_fetches_the_backbone() {
    let fixture = fixture().await;
    let version = fixture.push("bias", "vit").await.unwrap();
    let pulls = (0..6).map(|_| {
        let (bus, cache, manifest) = (fixture.bus.clone(), fixture.cache(), version.manifest);
        tokio::spawn(async move { pull(&bus, &manifest, &cache, false, |_, _, _| {}).await.unwrap() })
    });
    let pulled: Vec<_> =
        futures::future::join_all(pulls).await.into_iter().map(|pulled| pulled.unwrap()).collect();
    let fetched = pulled.iter().filter(|pulled| bytes_of(pulled, ByteKind::Backbone) > 0).count();
    assert_eq!(fetched, 1);
    same_content(&fixture.artifacts("bias"), &pulled[0].folder);
}

#[tokio::test]
async fn damaged_cache_files_are_fetched_again() {
    let fixture = fixture().await;
    let cache = fixture.cache();
    let version = fixture.push("bias", "vit").await.unwrap();
    let fetch = async |verify| pull(&fixture.bus, &version.manifest, &cache, verify, |_, _, _| {}).await;
    let first = fetch(false).await.unwrap();
    let backbone = cache.blob(&first.manifest.files.backbone.digest);
    let overwrite = |bytes: &[u8]| {
        fs::remove_file(&backbone).unwrap();
        fs::write(&backbone, bytes).unwrap();
    };
    overwrite(b"truncated");
    assert!(bytes_of(&fetch(false).await.unwrap(), ByteKind::Backbone) > 0);
    overwrite(&[8; 2_000_000]);
    assert_eq!(bytes_of(&fetch(false).await.unwrap(), ByteKind::Backbone), 0);
    assert!(bytes_of(&fetch(true).await.unwrap(), ByteKind::Backbone) > 0);
    fs::write(cache.blob(&version.manifest), b"{}").unwrap();
    fetch(false).await.unwrap();
    same_content(&fixture.artifacts("bias"), &first.folder);
}

#[tokio::test]
async fn what_cannot_be_pulled_is_not_published() {
    let fixture = fixture().await;
    let good = request_of(&fixture.push("bias", "vit").await.unwrap());
    let broken = |change: fn(&mut PublishModel)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    type Case = (&'static str, fn(&mut PublishModel));
    let cases: [Case; 8] = [
        ("not a file name", |r| r.files[1].name = "../x".into()),
        ("given twice", |r| r.files.push(r.files[1].clone())),
        ("missing", |r| drop(r.files.remove(2))),
        ("does not name", |r| {
            let (digest, kind) = (Digest::of(b"x"), ByteKind::Artifacts);
            r.files.push(FileEntry { name: "extra".into(), digest, size: 1, kind });
        }),
        ("not 1", |r| r.files[3].size = 1),
        ("method", |r| r.method = "full".into()),
        ("not in the blob store", |r| r.manifest = Digest::of(b"nothing")),
        ("another one", |r| r.files[2].kind = ByteKind::Backbone),
    ];
    for (expected, change) in cases {
        assert_bad(fixture.publish(&broken(change)).await, expected);
    }
    let stored = fixture.bus.put_blob(Bytes::from_static(b"{\"format\": 99}")).await.unwrap();
    let mut request = good.clone();
    request.manifest = stored.digest;
    assert_bad(fixture.publish(&request).await, "format 99");
    fixture.bus.delete_blob(&good.files[2].digest).await.unwrap();
    assert_bad(fixture.publish(&good).await, "is not stored");
    let list: ModelList = fixture.bus.request("models.list", &Empty {}).await.unwrap();
    assert_eq!(list.models.len(), 1);
}

#[tokio::test]
async fn a_folder_that_is_not_what_its_manifest_says_is_not_pushed() {
    let fixture = fixture().await;
    let name = ModelName::new("vit").unwrap();
    let folder = fixture.artifacts("bias");
    let push = async || push_folder(&fixture.bus, &folder, &name, |_, _, _| {}).await;
    fs::write(folder.join("eval_model.onnx"), b"another").unwrap();
    assert!(matches!(push().await, Err(RegistryError::Mismatch { .. })));
    fs::remove_file(folder.join("eval_model.onnx")).unwrap();
    assert!(matches!(push().await, Err(RegistryError::Bus(BusError::File { .. }))));
    fs::write(folder.join(MANIFEST_FILE), b"{").unwrap();
    assert!(matches!(push().await, Err(RegistryError::Manifest { .. })));
    fs::remove_file(folder.join(MANIFEST_FILE)).unwrap();
    assert!(matches!(push().await, Err(RegistryError::File { .. })));
}

/// Whoever may write to the store could put other bytes under the digest of a published file.
#[tokio::test]
async fn a_forged_file_is_refused_and_not_left_behind() {
    let fixture = fixture().await;
    let version = fixture.push("bias", "vit").await.unwrap();
    let forged = version.files.iter().find(|file| file.name == "eval_model.onnx").unwrap();
    let client = async_nats::connect(fixture.server.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let store = jetstream.get_object_store(fedpeft_protocol::subject::BLOB_BUCKET).await.unwrap();
    let bytes = vec![b'x'; forged.size as usize];
    store.put(forged.digest.to_string().as_str(), &mut &bytes[..]).await.unwrap();
    let cache = fixture.cache();
    let error = pull(&fixture.bus, &version.manifest, &cache, false, |_, _, _| {}).await.unwrap_err();
    assert!(matches!(error, RegistryError::Bus(BusError::Corrupt { digest, .. }) if digest == forged.digest));
    assert!(!cache.blob(&forged.digest).exists());
    assert!(!cache.artifacts(&version.manifest).join(&forged.name).exists());
    let holds_forgery = |folder: &Path| {
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.is_file()).any(|path| fs::read(path).unwrap() == bytes)
    };
    assert!(!holds_forgery(cache.blob(&forged.digest).parent().unwrap()));
    assert!(!holds_forgery(&cache.artifacts(&version.manifest)));
}

#[tokio::test]
async fn a_missing_model_and_a_missing_registry_are_named() {
    let fixture = fixture().await;
    let missing = pull(&fixture.bus, &Digest::of(b"x"), &fixture.cache(), false, |_, _, _| {}).await;
    assert!(matches!(missing, Err(RegistryError::Bus(BusError::NoBlob { .. }))));
    fixture._registry.stop().await;
    let error = fixture.bus.request::<_, ModelList>("models.list", &Empty {}).await.unwrap_err();
    assert!(matches!(error, BusError::NoService { service: "fedpeft-registry", .. }));
}
