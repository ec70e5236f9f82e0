//! `cargo xtask manifests`: whether Kubernetes would take what is in `k8s/`.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process::{answers, root, run};

/// Checks manifests against the schemas of Kubernetes versions, which it carries.
const VALIDATOR: &str = "kubernetes-validate==1.37.0";
/// The oldest version that is maintained, about, and a recent one.
const VERSIONS: [&str; 2] = ["1.31", "1.35"];
const OVERLAYS: [&str; 3] = ["local", "gpu", "production"];

/// Builds every overlay and validates it, strictly. Kinds that others define (of the Prometheus operator, of KEDA) are not
/// looked into.
pub fn manifests() -> Result<()> {
    if !answers(Command::new("kubectl").args(["version", "--client"])) {
        eprintln!("manifests are not validated: there is no kubectl on this machine");
        return Ok(());
    }
    let folder = root().join("target/manifests");
    let tools = folder.join("tools");
    let python = || {
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", &tools);
        python
    };
    fs::create_dir_all(&folder)?;
    if !answers(python().args(["-c", "import kubernetes_validate"])) {
        run(python()
            .args(["-m", "pip", "install", "--quiet", "--upgrade", "--target"])
            .arg(&tools)
            .arg(VALIDATOR))?;
    }
    for overlay in OVERLAYS {
        let built = folder.join(format!("{overlay}.yaml"));
        let file = File::create(&built).with_context(|| format!("cannot write {}", built.display()))?;
        run(Command::new("kubectl")
            .arg("kustomize")
            .arg(root().join("k8s/overlays").join(overlay))
            .stdout(file))?;
        for version in VERSIONS {
            // What is well goes to standard output, a line for each resource.
            let mut validate = python();
            validate.arg(tools.join("bin/kubernetes-validate"));
            validate.args(["--strict", "--quiet", "-k", version]).arg(&built).stdout(Stdio::null());
            if run(&mut validate).is_err() {
                bail!("overlay {overlay} is not valid for Kubernetes {version}");
            }
        }
    }
    Ok(())
}
