//! Exact means of low-rank updates, by real processes on the real backbone.

use std::{collections::BTreeMap, fs, path::Path};

use fedpeft_artifacts::ArtifactFolder;
use fedpeft_bus::Bus;
use fedpeft_codec::{Layout, decode};
use fedpeft_export::{Trained, inference};
use fedpeft_protocol::{
    Digest,
    round::{ClientOutcome, RoundReport},
};
use fedpeft_testkit::NatsServer;
use serde_json::json;

use crate::{
    export::classifies_alike,
    services::{Services, json_of, on, publish_with},
    support::{CONFIG, Workspace, succeed, text, until},
};

const EXACT: &str = "rounds = 2\nkeep_updates = true\naggregation = { kind = \"lora_exact\" }\n";

/// The weights of a merged model, by name.
fn merged(
    artifacts: &ArtifactFolder,
    adapter: &[f32],
    residual: Option<&[f32]>,
) -> BTreeMap<String, Vec<f32>> {
    let model = inference(artifacts, Trained { adapter, residual }).unwrap().model;
    let weights = model.graph.initializers.into_iter().filter(|(_, tensor)| tensor.shape.len() == 2);
    weights.filter_map(|(name, tensor)| Some((name, tensor.as_f32()?.into_owned()))).collect()
}

async fn values(bus: &Bus, digest: &Digest, layout: &Layout) -> Vec<f32> {
    decode(&bus.get_blob(digest, layout.bytes()).await.unwrap().0, layout).unwrap()
}

/// Asserts that the model after a round is the mean of its clients' models, which began with `before` beside their factors;
/// returns what it leaves beside its own.
async fn is_the_mean(
    bus: &Bus,
    artifacts: &ArtifactFolder,
    report: &RoundReport,
    before: Option<Vec<f32>>,
) -> Vec<f32> {
    let manifest = artifacts.manifest();
    let layout = manifest.residual().unwrap().unwrap();
    let mut mean: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let examples: u64 = report.clients.iter().map(|client| client.examples).sum();
    for client in &report.clients {
        let ClientOutcome::Accepted { digest, weight, .. } = &client.outcome else { panic!("{client:?}") };
        let share = *weight as f64 / examples as f64;
        let adapter = values(bus, digest, &manifest.adapter).await;
        for (name, weights) in merged(artifacts, &adapter, before.as_deref()) {
            let sums = mean.entry(name).or_insert_with(|| vec![0.0; weights.len()]);
            sums.iter_mut().zip(weights).for_each(|(sum, value)| *sum += share * f64::from(value));
        }
    }
    let residual = values(bus, &report.residual.unwrap(), &layout).await;
    let adapter = values(bus, &report.adapter, &manifest.adapter).await;
    let farthest = |found: BTreeMap<String, Vec<f32>>| {
        assert_eq!(found.len(), mean.len());
        let pairs = found.iter().flat_map(|(name, found)| found.iter().zip(&mean[name]));
        pairs.map(|(found, wanted)| (f64::from(*found) - wanted).abs()).fold(0.0, f64::max)
    };
    // Weights of about one, rounded to f32.
    let exact = farthest(merged(artifacts, &adapter, Some(&residual)));
    assert!(exact < 5e-7, "round {}: {exact}", report.round);
    let factors = farthest(merged(artifacts, &adapter, before.as_deref()));
    assert!(factors > 20.0 * exact, "round {}: without it {factors}, with it {exact}", report.round);
    residual
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merged_model_is_the_mean_of_its_clients_models() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let _services = Services::start(&nats, &workspace);
    publish_with(&nats, &workspace, &["--method", "lora", "--rank", "2", "--residual"]);
    until(|| on(&nats, &["run", "list"]).output().unwrap().status.success().then_some(()));
    let config = workspace.path("exact.toml");
    fs::write(&config, CONFIG.replace("rounds = 3\n", EXACT)).unwrap();
    succeed(on(&nats, &["run", "submit", config.to_str().unwrap(), "--name", "exact", "--watch"]));

    let verified = json_of(on(&nats, &["run", "verify", "exact", "--json"]));
    assert_eq!((&verified["rounds"], &verified["aggregated_again"]), (&json!(2), &json!(2)));

    let (bus, artifacts) = (nats.bus().await, ArtifactFolder::open(workspace.path("vit")).unwrap());
    let reports = bus.round_reports().await.unwrap();
    let mut residual = None;
    for round in 1..=2 {
        let (report, _) = reports.get(&format!("exact.{round}")).await.unwrap().unwrap();
        // What factors do not hold comes down from the second round on, measured as all else is, and never goes up.
        let bytes = artifacts.manifest().residual().unwrap().unwrap().bytes();
        for client in &report.clients {
            let adapter = client.bytes_by_kind["down.adapter"];
            assert_eq!(adapter > bytes, round == 2, "{adapter} bytes down in round {round}");
            assert!(client.bytes_up < bytes, "{} bytes up", client.bytes_up);
        }
        assert!(report.loss.is_some() && report.bytes_by_kind["down.evaluation"] > bytes);
        residual = Some(is_the_mean(&bus, &artifacts, &report, residual).await);
    }
    exports(&nats, &workspace, &artifacts);
}

fn exports(nats: &NatsServer, workspace: &Workspace, artifacts: &ArtifactFolder) {
    let path = |name: &str| workspace.path(name).to_str().unwrap().to_owned();
    let (last, early, again) = (path("last"), path("early"), path("again"));
    let summary = json_of(on(nats, &["export", "--run", "exact", "-o", &last, "--json"]));
    assert!(summary["skipped"][0]["reason"].as_str().unwrap().contains("use format onnx"), "{summary}");
    classifies_alike(artifacts, Path::new(&last));
    succeed(on(nats, &["export", "--run", "exact", "--round", "1", "-o", &early]));
    classifies_alike(artifacts, Path::new(&early));
    // The same from what is on the disk, without a broker.
    let mut command = crate::support::fedpeft();
    command.args(["export", "--artifacts", &path("vit"), "-o", &again, "--format", "onnx"]);
    command.arg("--checkpoint").arg(Path::new(&last).join("adapter.safetensors"));
    succeed(command);
    let model = |folder: &str| fs::read(Path::new(folder).join("model.onnx")).unwrap();
    assert!(model(&again) == model(&last) && model(&early) != model(&last));
    let peft = ["export", "--run", "exact", "-o", &path("peft"), "--format", "peft"];
    let refused = on(nats, &peft).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("use format onnx"), "{}", text(&refused));
}

#[test]
fn what_does_not_go_with_exact_means_is_named() {
    let exact = |method: &[&str], more: &[&str]| {
        let options = [&["--aggregation", "lora-exact", "--rounds", "1"], method, more].concat();
        let output = Workspace::new().simulate(&options).output().unwrap();
        assert!(!output.status.success());
        text(&output)
    };
    let told = exact(&["--method", "lora"], &[]);
    assert!(told.contains("--method lora --residual"), "{told}");
    let residual = ["--method", "lora", "--residual"];
    for (options, expected) in [
        (&["--lora-ranks", "2"][..], "lora_product"),
        (&["--strategy", "fedadam"], "lora_exact must be fedavg"),
        (&["--buffer", "2"], "buffered rounds must be mean"),
    ] {
        let told = exact(&residual, options);
        assert!(told.contains(expected), "{told}");
    }
}
