//! A whole federation under the rules of `fedpeft auth`, encrypted, every party with a certificate.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use fedpeft_testkit::{Certificates, NatsServer, Pair, assets};
use serde_json::{Value, json};

use crate::support::{Running, Workspace, fedpeft, program, succeed, text, until};

/// Everything that our programs and the client library can be made to say.
const LOUD: &str = "debug,async_nats=trace";

/// Keys, certificates, and a broker that asks for both.
struct Secured {
    workspace: Workspace,
    certificates: Certificates,
    person: Pair,
    nats: NatsServer,
}

impl Secured {
    async fn start() -> Self {
        let (workspace, certificates) = (Workspace::new(), Certificates::new());
        let (server, person) = (certificates.issue("server"), certificates.issue("person"));
        let mut init = auth(&workspace, &["init", "--json"]);
        init.arg("--tls-cert").arg(&server.cert).arg("--tls-key").arg(&server.key);
        init.arg("--tls-client-ca").arg(certificates.ca());
        let made: Value = serde_json::from_str(&succeed(init)).unwrap();
        let config = PathBuf::from(made["server_config"].as_str().unwrap());
        let nats = NatsServer::start_with_file(&config).await;
        Self { workspace, certificates, person, nats }
    }

    /// Tells a command where the broker is, and how to encrypt.
    fn at_broker(&self, mut command: Command) -> Command {
        command.args(["--server", &self.nats.url().replace("nats://", "tls://")]);
        command.arg("--tls-ca").arg(self.certificates.ca());
        command.arg("--tls-cert").arg(&self.person.cert).arg("--tls-key").arg(&self.person.key);
        command
    }

    /// The same, for a holder of credentials.
    fn holder(&self, command: Command, name: &str) -> Command {
        let mut command = self.at_broker(command);
        command.arg("--creds").arg(self.workspace.path(&format!("auth/creds/{name}.creds")));
        command
    }

    fn service(&self, role: &str) -> Running {
        let name = format!("fedpeft-{role}");
        let mut command = self.holder(program(&name), role);
        command.env("FEDPEFT_LOG", LOUD);
        if role == "exporter" {
            command.args(["--http", "127.0.0.1:0"]);
        }
        Running::start(command, &self.workspace.path(&format!("{name}.log")))
    }

    fn worker(&self, holder: &str, hosted: &[&str]) -> Command {
        let mut command = self.holder(program("fedpeft-worker"), holder);
        command.env("FEDPEFT_LOG", LOUD);
        command.args(hosted).args(["--threads", "1", "--device", "cpu"]);
        command.arg("--data").arg(self.workspace.path("run.toml"));
        command.arg("--cache").arg(self.workspace.path("cache"));
        command
    }

    /// Tokens and seeds of all credentials.
    fn secrets(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.workspace.path("auth/creds")).unwrap();
        let texts = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        let secret = |line: &&str| line.starts_with("SU") || line.starts_with("ey");
        texts.flat_map(|text| text.lines().filter(secret).map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    fn admin(&self, arguments: &[&str]) -> Command {
        let mut command = fedpeft();
        command.args(arguments);
        self.holder(command, "admin")
    }
}

fn auth(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut command = fedpeft();
    command.arg("auth").args(arguments).arg("--dir").arg(workspace.path("auth"));
    command
}

fn refused(output: &Output, expected: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{}", text(output));
    assert!(said.contains(expected), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federation_runs_with_credentials_for_each_and_tls_for_all() {
    let secured = Secured::start().await;
    let workspace = &secured.workspace;
    succeed(auth(workspace, &["enroll", "--worker", "site-1", "client-000", "client-001"]));
    succeed(auth(workspace, &["enroll", "--worker", "site-2", "client-002", "client-003", "evaluator"]));
    let listed: Value = serde_json::from_str(&succeed(auth(workspace, &["list", "--json"]))).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 6);

    let _services = ["registry", "aggregator", "exporter"].map(|role| {
        let running = secured.service(role);
        if role == "registry" {
            until(|| secured.admin(&["models", "list"]).output().unwrap().status.success().then_some(()));
        }
        running
    });
    let log = |name: &str| workspace.path(&format!("{name}.log"));
    let site_1 = secured.worker("site-1", &["--clients", "2"]);
    let site_2 = secured.worker("site-2", &["--clients", "2", "--first", "2", "--evaluate"]);
    let _workers = [Running::start(site_1, &log("site-1")), Running::start(site_2, &log("site-2"))];

    let (model, folder) = (assets().dinov2().unwrap(), workspace.path("vit"));
    let mut build = fedpeft();
    build.args(["artifacts", "build", "--model", model.to_str().unwrap()]);
    build.args(["--output", "/backbone/layernorm/Add_1_output_0", "--input-size", "28"]);
    build.args(["--classes", "10", "--method", "head", "-o", folder.to_str().unwrap()]);
    succeed(build);
    succeed(secured.admin(&["models", "push", folder.to_str().unwrap(), "--name", "vit"]));
    until(|| secured.admin(&["run", "list"]).output().unwrap().status.success().then_some(()));
    let config = workspace.path("run.toml");
    let table =
        succeed(secured.admin(&["run", "submit", config.to_str().unwrap(), "--name", "first", "--watch"]));
    assert_eq!(table.lines().filter(|line| line.contains("4/4")).count(), 3, "{table}");
    let report: Value = serde_json::from_str(&succeed(secured.admin(&["run", "report", "first"]))).unwrap();
    assert_eq!(report["status"]["state"], json!("completed"));
    assert!(report["rounds"][2]["accuracy"].is_number(), "nobody evaluated");

    // However much they log, no secret is in it.
    let secrets = secured.secrets();
    assert_eq!(secrets.len(), 2 * 7, "a token and a seed for each, and for the system account");
    for name in ["fedpeft-registry", "fedpeft-aggregator", "fedpeft-exporter", "site-1", "site-2"] {
        let said = std::fs::read_to_string(log(name)).unwrap();
        assert!(said.contains("DEBUG"), "{name} says little: {said}");
        assert!(!secrets.iter().any(|secret| said.contains(secret)), "{name} logs a secret");
    }

    // One site may not speak for the other.
    let imposter = secured.worker("site-1", &["--client", "client-002"]).output().unwrap();
    refused(&imposter, "client-002");
    // A client's credentials command nothing.
    let mut command = fedpeft();
    command.args(["run", "cancel", "first"]);
    refused(&secured.holder(command, "site-1").output().unwrap(), "forbids");
    // Without credentials, or without a certificate, nobody comes in.
    let mut bare = fedpeft();
    bare.args(["run", "list"]);
    refused(&secured.at_broker(bare).output().unwrap(), "--creds");
    let mut bare = fedpeft();
    bare.args(["run", "list", "--server", &secured.nats.url(), "--tls-ca"]).arg(secured.certificates.ca());
    refused(&bare.output().unwrap(), "--tls-cert");
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_reaches_the_server_and_mistakes_are_one_line() {
    let secured = Secured::start().await;
    let workspace = &secured.workspace;
    let _registry = secured.service("registry");
    until(|| secured.admin(&["models", "list"]).output().unwrap().status.success().then_some(()));
    succeed(auth(workspace, &["enroll", "guest", "other", "--expires", "90d"]));
    refused(&auth(workspace, &["enroll", "another", "guest"]).output().unwrap(), "--force");
    let listed = succeed(auth(workspace, &["list"]));
    assert!(!listed.contains("another") && listed.contains("guest"), "{listed}");
    refused(&auth(workspace, &["init"]).output().unwrap(), "--force");
    refused(&auth(workspace, &["revoke", "nobody"]).output().unwrap(), "auth list");
    refused(&auth(workspace, &["push"]).output().unwrap(), "--server");

    let kept = workspace.path("guest.creds");
    std::fs::copy(workspace.path("auth/creds/guest.creds"), &kept).unwrap();
    let mut list = fedpeft();
    list.args(["models", "list"]);
    let mut as_guest = secured.at_broker(list);
    as_guest.arg("--creds").arg(&kept);
    refused(&as_guest.output().unwrap(), "forbids");
    let said = text(&secured.at_broker(auth(workspace, &["revoke", "guest"])).output().unwrap());
    assert!(said.contains("revoked guest") && said.contains("are closed"), "{said}");
    refused(&as_guest.output().unwrap(), "revoked");
    let listed: Value = serde_json::from_str(&succeed(auth(workspace, &["list", "--json"]))).unwrap();
    let guest = listed.as_array().unwrap().iter().find(|one| one["name"] == "guest").unwrap();
    assert_eq!((&guest["status"], guest["expires"].is_u64()), (&json!("revoked"), true));

    // A new key for a role: new files for all who hold valid ones, the former are worth nothing.
    let former = workspace.path("other.creds");
    std::fs::copy(workspace.path("auth/creds/other.creds"), &former).unwrap();
    let said = succeed(auth(workspace, &["rotate", "client", "--json"]));
    let renewed: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((renewed.as_array().unwrap().len(), &renewed[0]["name"]), (1, &json!("other")));
    let told = succeed(secured.at_broker(auth(workspace, &["push", "--json"])));
    assert!(serde_json::from_str::<Value>(&told).unwrap()["server"].is_string(), "{told}");
    for (creds, expected) in [(former, "--creds"), (workspace.path("auth/creds/other.creds"), "forbids")] {
        let mut list = fedpeft();
        list.args(["models", "list"]);
        let mut as_other = secured.at_broker(list);
        refused(&as_other.arg("--creds").arg(creds).output().unwrap(), expected);
    }
}
