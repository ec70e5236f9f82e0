//! The corpus that fuzzing found, and its seeds, once more.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic")]
#![allow(clippy::print_stdout, reason = "the last line tells which input failed")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use fedpeft_hostile::{TARGETS, Target};

fn inputs(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay((name, run): Target) {
    let files = inputs(name);
    assert!(files.len() >= 3, "the corpus of {name} is missing");
    for file in files {
        let bytes = fs::read(&file).unwrap();
        // Who fails is told by the last line.
        println!("{}", file.display());
        run(&bytes);
        // And what a cut cable leaves of it.
        for cut in [1, 2, 3, 5, 8, 13] {
            run(&bytes[..bytes.len() * cut / 16]);
        }
    }
}

#[test]
fn every_target_has_its_corpus_and_stands_it() {
    TARGETS.into_iter().for_each(replay);
}
