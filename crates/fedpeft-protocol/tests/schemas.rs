//! `proto-schemas/` describes every message to programs in other languages. It is generated from the Rust
//! types; this test fails when it is not, and writes it when `FEDPEFT_UPDATE_SCHEMAS=1` is set.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use fedpeft_protocol::{api, event, model, presence, round, run};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto-schemas")
}

fn schema<T: JsonSchema>() -> Value {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value()
}

/// Every message that crosses the wire or lies in a bucket, by file name.
fn schemas() -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("task.json", schema::<round::Task>()),
        ("update.json", schema::<round::Update>()),
        ("event.json", schema::<event::Event>()),
        ("run-record.json", schema::<run::RunRecord>()),
        ("round-report.json", schema::<round::RoundReport>()),
        ("model-version.json", schema::<model::ModelVersion>()),
        ("presence.json", schema::<presence::Presence>()),
        ("api.empty.json", schema::<api::Empty>()),
        ("api.runs.create.request.json", schema::<api::CreateRun>()),
        ("api.runs.request.json", schema::<api::RunRequest>()),
        ("api.runs.get.reply.json", schema::<run::RunView>()),
        ("api.runs.list.reply.json", schema::<api::RunList>()),
        ("api.models.publish.request.json", schema::<api::PublishModel>()),
        ("api.models.get.request.json", schema::<run::ModelRef>()),
        ("api.models.list.reply.json", schema::<api::ModelList>()),
    ])
}

#[test]
fn schemas_on_disk_are_those_of_the_types() {
    let (folder, schemas) = (folder(), schemas());
    if std::env::var_os("FEDPEFT_UPDATE_SCHEMAS").is_some_and(|value| value == "1") {
        for (name, schema) in &schemas {
            fs::write(folder.join(name), format!("{schema:#}\n")).unwrap();
        }
    }
    for (name, schema) in &schemas {
        let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
        // As values: the order of keys depends on features that other crates of a build switch on.
        let found: Value = serde_json::from_str(&text).unwrap_or_default();
        assert!(
            found == *schema,
            "proto-schemas/{name} is not the schema of its type: run \
             `FEDPEFT_UPDATE_SCHEMAS=1 cargo test -p fedpeft-protocol --test schemas` and commit the change"
        );
    }
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = name == "README.md" || schemas.contains_key(name.as_str());
        assert!(known, "proto-schemas/{name} belongs to no message: remove it");
    }
}
