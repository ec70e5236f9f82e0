//! Methods on a ViT-B/16 built here, with random weights.
#![allow(clippy::unwrap_used, reason = "tests may")]

mod model;

use std::{collections::BTreeSet, sync::LazyLock};

use fedpeft_passes::Prepared;
use fedpeft_peft::{Bottleneck, Lora, Method, Peft, Prompt, PromptInit, Structure, apply};
use model::Vit;

static BASE: LazyLock<Prepared> = LazyLock::new(|| Vit::base().prepared());

/// Values of the adapter with a head of 100 classes.
fn values(backbone: &Prepared, method: impl Into<Peft>) -> usize {
    let mut tuned = backbone.clone();
    let trainable = apply(&method.into(), &mut tuned, 0).unwrap();
    let head = 100 * 768 + 100;
    head + trainable.iter().map(|name| tuned.graph.initializers[name].len()).sum::<usize>()
}

#[test]
fn parameter_counts_are_those_of_the_paper() {
    let backbone = &*BASE;
    assert_eq!(values(backbone, Method::Full), 85_875_556);
    assert_eq!(values(backbone, Method::Head), 76_900);
    assert_eq!(values(backbone, Method::Bias), 179_812);
    assert_eq!(values(backbone, Method::Prompt(Prompt::default())), 169_060);
    let shared = Bottleneck { reduction: 8, shared: true, ..Bottleneck::default() };
    assert_eq!(values(backbone, Method::Adapter(shared)), 225_220);
    let mebibytes = |values: usize| (values as f64 * 4.0 / f64::from(1 << 20) * 1000.0).round() / 1000.0;
    assert_eq!(
        [85_875_556, 76_900, 179_812, 225_220, 169_060].map(mebibytes),
        [327.589, 0.293, 0.686, 0.859, 0.645]
    );
    assert_eq!(values(backbone, Method::Lora(Lora::default())), 76_900 + 12 * 2 * 2 * 8 * 768);
    let frozen = Lora { freeze_a: true, ..Lora::default() };
    assert_eq!(values(backbone, Method::Lora(frozen.clone())), 76_900 + 12 * 2 * 8 * 768);
    assert_eq!(values(backbone, Method::Dora(frozen)), 76_900 + 12 * 2 * (8 + 1) * 768);
}

#[test]
fn frozen_factors_are_those_that_training_would_begin_with() {
    let tuned = |freeze_a, seed| {
        let mut tuned = BASE.clone();
        let method = Method::Lora(Lora { freeze_a, ..Lora::default() });
        let trainable = apply(&method.into(), &mut tuned, seed).unwrap();
        let factors =
            tuned.graph.initializers.into_iter().filter(|(name, _)| name.ends_with(".lora_A.weight"));
        (trainable, factors.collect::<Vec<_>>())
    };
    let ((all, trained), (some, frozen)) = (tuned(false, 3), tuned(true, 3));
    assert_eq!(frozen.len(), 24);
    assert_eq!(trained, frozen);
    assert!(frozen.iter().all(|(name, _)| all.contains(name) && !some.contains(name)));
    assert!(some.iter().all(|name| name.ends_with(".lora_B.weight")) && some.len() == 24);
    assert_ne!(tuned(true, 4).1, frozen);
}

#[test]
fn targets_are_chosen_by_role_and_by_name() {
    let structure = Structure::of(&BASE).unwrap();
    assert_eq!((structure.blocks.len(), structure.norms.len()), (12, 2 * 25));
    let chosen = |globs: &[&str]| {
        let globs: Vec<String> = globs.iter().map(|glob| (*glob).to_owned()).collect();
        structure.choose(&globs).map(|targets| targets.into_iter().map(|t| t.path).collect::<BTreeSet<_>>())
    };
    assert_eq!(chosen(&["query", "up"]).unwrap().len(), 24);
    let both = chosen(&["blocks.3.*"]).unwrap_err().to_string();
    assert!(both.contains("blocks.3.attention.qkv and its part blocks.3.attention.query"), "{both}");
    assert_eq!(chosen(&["blocks.1?.mlp.*"]).unwrap().len(), 4);
    assert_eq!(chosen(&["*.attn.proj.weight"]).unwrap(), chosen(&["output"]).unwrap());
    let miss = chosen(&["qery"]).unwrap_err().to_string();
    assert!(
        miss.contains("\"qery\" matches no linear layer") && miss.contains("near misses: query"),
        "{miss}"
    );
    assert!(chosen(&["["]).unwrap_err().to_string().contains("is no glob"));
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let mut backbone = BASE.clone();
    let mut refuse = |method: Method| apply(&method.into(), &mut backbone, 0).unwrap_err().to_string();
    let lora = |rank| Method::Lora(Lora { rank, ..Lora::default() });
    let wide = "rank 769 is larger than blocks.0.attention.query, which is 768 x 768";
    assert!(refuse(lora(769)).contains(wide));
    let module = Bottleneck { size: Some(769), ..Bottleneck::default() };
    assert!(refuse(Method::Adapter(module)).contains("the inner width 769 must be 1 to the 768 features"));
    let init = Prompt { init: PromptInit::Embedding, ..Prompt::default() };
    assert!(refuse(Method::Prompt(init)).contains("use random"));
    assert_eq!(backbone.graph.nodes, BASE.graph.nodes);
    assert!(backbone.graph.initializers.keys().eq(BASE.graph.initializers.keys()));
}
