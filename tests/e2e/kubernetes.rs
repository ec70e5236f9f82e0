//! The manifests of `k8s/`, without a cluster: what `kubectl kustomize` makes of the local overlay is started as processes of
//! this machine, with its commands, arguments, environment, configuration and probes, and a run goes through them.
//!
//! Nothing of a pod is made up here but what a cluster gives it: addresses, folders, its name and its index.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use fedpeft_testkit::assets;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{Running, Workspace, fedpeft, program, succeed, text, until};

/// What `kubectl kustomize` makes of an overlay; nothing where there is no kubectl.
#[allow(clippy::print_stderr, reason = "who reads the log should know what was not tried")]
fn manifests(overlay: &str) -> Option<Vec<Value>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s/overlays").join(overlay);
    let Ok(output) = Command::new("kubectl").arg("kustomize").arg(&folder).output() else {
        eprintln!("skipped: there is no kubectl on this machine");
        return None;
    };
    assert!(output.status.success(), "{}", text(&output));
    let yaml = String::from_utf8(output.stdout).unwrap();
    let documents = serde_norway::Deserializer::from_str(&yaml);
    Some(documents.map(|document| Value::deserialize(document).unwrap()).collect())
}

fn find<'a>(manifests: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is_it = |document: &&Value| {
        // Generated configuration maps have a hash behind their name.
        let found = document["metadata"]["name"].as_str().unwrap();
        document["kind"] == kind
            && (found == name || found.starts_with(&format!("{name}-")) && kind == "ConfigMap")
    };
    manifests.iter().find(is_it).unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn pod(document: &Value) -> &Value {
    &document["spec"]["template"]["spec"]
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// One pod as a process.
struct Pod {
    _running: Running,
    http: u16,
    probes: Vec<String>,
}

/// What stands for the cluster.
struct Cluster<'a> {
    manifests: &'a [Value],
    folder: PathBuf,
    broker: u16,
}

impl Cluster<'_> {
    /// A container's command in this pod, its mounts as folders.
    fn command(&self, workload: &Value, name: &str, index: usize, http: u16) -> Command {
        let container = &pod(workload)["containers"][0];
        let mut places = vec![
            ("nats://nats:4222".to_owned(), format!("nats://127.0.0.1:{}", self.broker)),
            ("0.0.0.0:4222".to_owned(), format!("127.0.0.1:{}", self.broker)),
            ("0.0.0.0:8080".to_owned(), format!("127.0.0.1:{http}")),
            ("0.0.0.0:8222".to_owned(), format!("127.0.0.1:{http}")),
        ];
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let (volume, path) = (mount["name"].as_str().unwrap(), mount["mountPath"].as_str().unwrap());
            let folder = self.folder.join(name).join(volume);
            fs::create_dir_all(&folder).unwrap();
            places.push((path.to_owned(), folder.display().to_string()));
        }
        let local = |text: &str| replaced(text, &places);
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let volume = mount["name"].as_str().unwrap();
            for (file, content) in self.config_map(workload, volume) {
                fs::write(self.folder.join(name).join(volume).join(file), local(&content)).unwrap();
            }
        }
        let words = |field: &str| -> Vec<String> {
            let words = container[field].as_array().into_iter().flatten();
            words.map(|word| local(word.as_str().unwrap())).collect()
        };
        let line = [words("command"), words("args")].concat();
        let mut command = match line[0].as_str() {
            "nats-server" => Command::new(assets().nats_server().unwrap()),
            ours => program(ours),
        };
        command.args(&line[1..]);
        for variable in container["env"].as_array().into_iter().flatten() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                None => local(variable["value"].as_str().unwrap()),
                Some("metadata.name") => name.to_owned(),
                Some("metadata.labels['apps.kubernetes.io/pod-index']") => index.to_string(),
                Some(other) => panic!("this test knows no field {other}"),
            };
            command.env(variable["name"].as_str().unwrap(), value);
        }
        command
    }

    /// Files of the configuration map behind a volume.
    fn config_map(&self, workload: &Value, volume: &str) -> BTreeMap<String, String> {
        let volumes = pod(workload)["volumes"].as_array().into_iter().flatten();
        let named =
            volumes.filter(|known| known["name"] == volume).find_map(|v| v["configMap"]["name"].as_str());
        let Some(named) = named else { return BTreeMap::new() };
        serde_json::from_value(find(self.manifests, "ConfigMap", named)["data"].clone()).unwrap()
    }

    /// Starts a pod and waits until its probes succeed, as a kubelet does.
    fn start(&self, workload: &Value, name: &str, index: usize) -> Pod {
        let http = free_port();
        let log = self.folder.join(format!("{name}.log"));
        let running = Running::start(self.command(workload, name, index, http), &log);
        let container = &pod(workload)["containers"][0];
        let probes = ["startupProbe", "readinessProbe", "livenessProbe"];
        let paths = probes.iter().filter_map(|probe| container[probe]["httpGet"]["path"].as_str());
        let pod = Pod { _running: running, http, probes: paths.map(str::to_owned).collect() };
        assert!(pod.probes.len() >= 2, "{name} has probes");
        for path in &pod.probes {
            until(|| {
                get(pod.http, path).filter(|page| page.starts_with("HTTP/1.") && page.contains(" 200 "))
            });
        }
        pod
    }
}

/// What is found in the text is replaced once: what came in its place may contain what another replaces.
fn replaced(mut text: &str, places: &[(String, String)]) -> String {
    let mut local = String::new();
    while let Some(next) = text.chars().next() {
        match places.iter().find(|(from, _)| text.starts_with(from.as_str())) {
            Some((from, to)) => {
                local.push_str(to);
                text = &text[from.len()..];
            }
            None => {
                local.push(next);
                text = &text[next.len_utf8()..];
            }
        }
    }
    local
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}

#[test]
fn the_local_overlay_runs_a_run() {
    let Some(manifests) = manifests("local") else { return };
    let workspace = Workspace::new();
    let cluster = Cluster { manifests: &manifests, folder: workspace.path("cluster"), broker: free_port() };
    let of = |kind: &str, name: &str| find(&manifests, kind, name);
    let mut pods = vec![cluster.start(of("StatefulSet", "nats"), "nats-0", 0)];
    for name in ["registry", "aggregator", "exporter"] {
        pods.push(cluster.start(of("Deployment", name), name, 0));
    }

    // Somebody publishes the model that the run names.
    let server = ["--server".to_owned(), format!("nats://127.0.0.1:{}", cluster.broker)];
    let folder = workspace.path("vit");
    let mut build = fedpeft();
    build.args([
        "artifacts",
        "build",
        "--output",
        "/backbone/layernorm/Add_1_output_0",
        "--input-size",
        "28",
    ]);
    build.args(["--classes", "10", "--method", "head", "--model"]).arg(assets().dinov2().unwrap());
    build.arg("-o").arg(&folder);
    succeed(build);
    let mut push = fedpeft();
    push.args(["models", "push"]).arg(&folder).args(["--name", "demo"]).args(&server);
    succeed(push);

    let workers = of("StatefulSet", "worker");
    for index in 0..workers["spec"]["replicas"].as_u64().unwrap() as usize {
        pods.push(cluster.start(workers, &format!("worker-{index}"), index));
    }
    pods.push(cluster.start(of("Deployment", "evaluator"), "evaluator-0", 0));

    let submitted = cluster.command(of("Job", "submit"), "submit", 0, 0).output().unwrap();
    assert!(submitted.status.success(), "{}", text(&submitted));
    let mut watch = fedpeft();
    watch.args(["run", "watch", "demo"]).args(&server);
    succeed(watch);
    let mut report = fedpeft();
    report.args(["run", "report", "demo"]).args(&server);
    let report: Value = serde_json::from_str(&succeed(report)).unwrap();
    let rounds = report["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 3);
    let clients: Vec<&Value> =
        rounds[0]["clients"].as_array().unwrap().iter().map(|client| &client["client"]).collect();
    assert_eq!(clients, [&json!("worker-0"), &json!("worker-1")]);
    assert!(rounds.iter().all(|round| round["accuracy"].is_number()));
    // All are still well, and tell the exporter's numbers.
    for pod in &pods {
        assert!(pod.probes.iter().all(|path| get(pod.http, path).is_some_and(|page| page.contains(" 200 "))));
    }
    let page = until(|| {
        get(pods[3].http, "/metrics").filter(|page| page.contains("fedpeft_rounds_total{run=\"demo\"} 3"))
    });
    assert!(page.contains("fedpeft_bytes_total"));
}

/// What a careful operator looks for in every overlay.
#[test]
fn every_pod_is_restricted_and_probed() {
    for overlay in ["local", "gpu", "production"] {
        let Some(manifests) = manifests(overlay) else { return };
        let workloads = manifests.iter().filter(|document| {
            ["Deployment", "StatefulSet", "Job"].contains(&document["kind"].as_str().unwrap())
        });
        for workload in workloads {
            let (name, spec) = (&workload["metadata"]["name"], pod(workload));
            assert_eq!(spec["automountServiceAccountToken"], false, "{name}");
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{name}");
            assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            for container in spec["containers"].as_array().unwrap() {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
                assert!(container["resources"]["requests"]["cpu"].is_string(), "{name}");
                if workload["kind"] != "Job" {
                    assert!(container["readinessProbe"].is_object(), "{name}");
                    assert!(container["livenessProbe"].is_object(), "{name}");
                }
            }
            let labels = &workload["spec"]["template"]["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/part-of"], "fedpeft", "{name}: network policies go by it");
        }
    }
}

/// The production overlay: credentials and TLS for all, and no client.
#[test]
fn production_has_credentials_and_no_clients() {
    let Some(manifests) = manifests("production") else { return };
    assert!(!manifests.iter().any(|document| {
        ["worker", "evaluator"].iter().any(|name| document["metadata"]["name"] == *name)
    }));
    for name in ["aggregator", "registry", "exporter"] {
        let container = &pod(find(&manifests, "Deployment", name))["containers"][0];
        let value = |variable: &str| {
            let env = container["env"].as_array().unwrap().iter();
            env.filter(|known| known["name"] == variable).find_map(|known| known["value"].as_str())
        };
        assert_eq!(value("FEDPEFT_SERVER"), Some("tls://nats:4222"), "{name}");
        for variable in ["FEDPEFT_CREDS", "FEDPEFT_TLS_CA"] {
            let path = value(variable).unwrap();
            let mounts = container["volumeMounts"].as_array().unwrap();
            assert!(
                mounts.iter().any(|mount| path.starts_with(mount["mountPath"].as_str().unwrap())),
                "{path}"
            );
        }
    }
    let aggregator = find(&manifests, "Deployment", "aggregator");
    assert_eq!(aggregator["spec"]["replicas"], 2);
    assert!(pod(aggregator)["containers"][0]["args"].as_array().unwrap().contains(&json!("--noise-secret")));
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../grafana/prometheus/rules.yml");
    let rules: Value = serde_norway::from_str(&fs::read_to_string(rules).unwrap()).unwrap();
    assert_eq!(find(&manifests, "PrometheusRule", "fedpeft")["spec"], rules);
    let nats = pod(find(&manifests, "StatefulSet", "nats"));
    assert_eq!(nats["volumes"][0]["secret"]["secretName"], "fedpeft-nats");
}
