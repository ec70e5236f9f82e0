//! Texts instead of images: the tokenizer comes with the artifacts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use fedpeft_protocol::{
    round::{Outcome, Payload, Work},
    run::TrainingSpec,
};
use serde_json::{Map, json};

use crate::setup::{CLASSES, Setup, next};

/// Longest text, with its two special tokens.
pub const TOKENS: usize = 8;

/// Words of each class.
const WORDS: [&str; CLASSES] = ["goal match ball team", "vote law party poll", "film song band stage"];

/// A tiny BERT of the golden values, with a tokenizer of whole words.
pub fn model(folder: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert_import/bert");
    fs::create_dir(folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(file), folder.join(file)).unwrap();
    }
    let words = WORDS.iter().flat_map(|words| words.split(' '));
    let tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"].into_iter().chain(words);
    let vocabulary: Map<_, _> = tokens.zip(0..).map(|(token, id)| (token.to_owned(), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// Texts of one to nine words, most of their class and one of no class, and a TOML description of them.
pub fn data(folder: &Path) -> PathBuf {
    let mut table = "text,label\n".to_owned();
    for i in 0..240 {
        let class = i % CLASSES;
        let words: Vec<&str> = WORDS[class].split(' ').collect();
        let text: Vec<&str> = (0..i % 8).map(|at| words[(i / 8 + at * 3) % 4]).chain(["today"]).collect();
        let text = if text.len() == 1 { words[i % 4].to_owned() } else { text.join(" ") };
        table += &format!("{text},{class}\n");
    }
    fs::write(folder.join("texts.csv"), table).unwrap();
    let path = folder.join("data.toml");
    let text = "kind = \"csv\"\ntrain = \"texts.csv\"\ntest_fraction = 0.25\nclasses = 3\nclients = 4\n\
        samples_per_client = 40\npartition = { kind = \"iid\" }\neval_examples = 60\nseed = 5\n";
    fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn a_client_with_texts_learns_their_classes() {
    let setup = Setup::texts().await;
    let _worker = setup.worker(&["--clients", "1", "--evaluate"]);
    setup.present("client-000").await;
    setup.present("evaluator").await;
    let mut updates = setup.updates().await;
    let training =
        TrainingSpec { local_epochs: 20, batch_size: 16, learning_rate: 0.02, ..Default::default() };
    let work = Work::Train {
        training,
        seed: 3,
        rounds: 1,
        stability: None,
        uplink: Default::default(),
        ranks: false,
        memory: None,
        personal: false,
        secure: None,
    };
    setup.send(&setup.task(1, "client-000", work), "client-000").await;
    let outcome = next(&mut updates).await.update.unwrap().outcome;
    let Outcome::Trained { examples: 40, adapter: Payload::Message { data, .. }, .. } = outcome else {
        panic!("{outcome:?}")
    };
    let mut task = setup.task(2, "evaluator", Work::Evaluate);
    task.adapter = Payload::inline(data);
    setup.send(&task, "evaluator").await;
    let outcome = next(&mut updates).await.update.unwrap().outcome;
    let Outcome::Evaluated { examples: 60, accuracy, .. } = outcome else { panic!("{outcome:?}") };
    assert!(accuracy > Some(0.8), "{accuracy:?}");
}
