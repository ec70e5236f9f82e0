//! Building artifacts, beside copying the model's file.

use std::{fs, path::Path, time::Instant};

use anyhow::Result;
use fedpeft_artifacts::{BuildOptions, build};
use fedpeft_peft::Peft;
use fedpeft_testkit::assets;

use crate::figure::{Figure, Section, Spread};

/// Where the backbone ends.
pub const OUTPUT: &str = "/backbone/layernorm/Add_1_output_0";
const METHODS: [&str; 4] = ["head", "bias", "lora", "full"];
const TIMES: usize = 3;

/// Artifacts of a ViT-S at 56 pixels.
pub fn building() -> Result<Vec<Figure>> {
    let (model, folder) = (assets().dinov2()?, tempfile::tempdir()?);
    let copy = folder.path().join("copy.onnx");
    let copying = repeated(|| {
        fs::copy(&model, &copy)?;
        Ok(())
    })?;
    let mut figures = Vec::new();
    for method in METHODS {
        let options = BuildOptions::image_classification(&model, OUTPUT, 56, 10, method.parse::<Peft>()?);
        let path = folder.path().join(method);
        let value = repeated(|| {
            clear(&path)?;
            build(&options, &path)?;
            Ok(())
        })?;
        let figure = Figure::new(Section::Artifacts, method, "ViT-S, 56 px").is(value, "s");
        figures.push(figure.beside("copy of the model's file", copying));
    }
    Ok(figures)
}

fn clear(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}

/// Seconds of something.
fn repeated(mut work: impl FnMut() -> Result<()>) -> Result<Spread> {
    let mut seconds = Vec::new();
    for _ in 0..TIMES {
        let started = Instant::now();
        work()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(Spread::of(seconds))
}
