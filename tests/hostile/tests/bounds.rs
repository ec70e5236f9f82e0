//! Arbitrary bytes and mutations of valid inputs: nothing panics, and nothing takes more memory than a multiple of what
//! came. Allocations are counted.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::{fs, path::Path, sync::LazyLock};

use fedpeft_artifacts::{Manifest, read_checkpoint};
use fedpeft_codec::{Layout, MAX_VALUES, TensorSpec};
use fedpeft_hostile::TARGETS;
use fedpeft_onnx::Model;
use fedpeft_protocol::{
    api::{CreateRun, PublishModel, RunList},
    event::Event,
    presence::Presence,
    round::{Task, Update},
    run::RunRecord,
    wire::Format,
};
use proptest::prelude::*;

/// Most bytes at once while `work` runs.
fn peak(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).bytes_max
}

/// Seeds of every target.
static CORPUS: LazyLock<Vec<Vec<Vec<u8>>>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let files = |(name, _): &(&str, _)| {
        let mut paths: Vec<_> =
            fs::read_dir(folder.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    };
    TARGETS.iter().map(files).collect()
});

/// What happens to bytes on their way through a stranger's hands.
#[derive(Debug, Clone)]
enum Mutation {
    Set(usize, u8),
    /// Lengths are what hurts: a big one in the middle.
    Length(usize, u32),
    Cut(usize),
    Repeat(usize, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let length = prop_oneof![Just(u32::MAX), Just(0x7fff_ffff), any::<u32>()];
    prop_oneof![
        4 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        2 => (any::<usize>(), length).prop_map(|(at, length)| Mutation::Length(at, length)),
        1 => any::<usize>().prop_map(Mutation::Cut),
        1 => (any::<usize>(), 1usize..64).prop_map(|(at, count)| Mutation::Repeat(at, count)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    if bytes.is_empty() {
        return;
    }
    let len = bytes.len();
    match *mutation {
        Mutation::Set(at, byte) => bytes[at % len] = byte,
        Mutation::Length(at, length) => {
            let at = at % len;
            let end = len.min(at + 4);
            bytes[at..end].copy_from_slice(&length.to_be_bytes()[..end - at]);
        }
        Mutation::Cut(at) => bytes.truncate(at % len),
        Mutation::Repeat(at, count) => {
            let at = at % len;
            let piece = bytes[at..len.min(at + count)].to_vec();
            bytes.splice(at..at, piece);
        }
    }
}

/// Decodes `bytes` as everything that is received, and returns the most memory that one of it took.
fn decoding(bytes: &[u8]) -> u64 {
    fn one<T: serde::de::DeserializeOwned>(format: Format, bytes: &[u8]) -> u64 {
        peak(|| drop(format.decode::<T>(bytes)))
    }
    let all = [Format::MessagePack, Format::Json].map(|format| {
        [
            one::<Task>(format, bytes),
            one::<Update>(format, bytes),
            one::<Event>(format, bytes),
            one::<Presence>(format, bytes),
            one::<CreateRun>(format, bytes),
            one::<PublishModel>(format, bytes),
            one::<RunRecord>(format, bytes),
            one::<RunList>(format, bytes),
        ]
        .into_iter()
        .max()
    });
    all.into_iter().flatten().max().unwrap_or(0)
}

/// A buffered value takes 32 bytes, a list grows by doubling while the old one is still there, and an error is text.
fn allowed(bytes: usize) -> u64 {
    200 * bytes as u64 + 16_384
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        for (_, run) in TARGETS {
            run(&bytes);
        }
        prop_assert!(decoding(&bytes) <= allowed(bytes.len()));
    }

    #[test]
    fn damaged_inputs_do_no_harm(
        target in 0..TARGETS.len(),
        seed in any::<prop::sample::Index>(),
        mutations in prop::collection::vec(mutation(), 1..6),
    ) {
        let mut bytes = seed.get(&CORPUS[target]).clone();
        mutations.iter().for_each(|mutation| mutate(&mut bytes, mutation));
        TARGETS[target].1(&bytes);
        prop_assert!(decoding(&bytes) <= allowed(bytes.len()));
        let loading = peak(|| drop(Model::from_bytes(bytes.clone())));
        prop_assert!(loading <= allowed(bytes.len()), "loading {} bytes took {loading}", bytes.len());
        let reading = peak(|| drop(Manifest::from_json(&bytes)));
        prop_assert!(reading <= allowed(bytes.len()), "reading {} bytes took {reading}", bytes.len());
    }

}

proptest! {
    // Each case decodes a megabyte as every message.
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn lists_of_nothing_take_bounded_memory(count in 0usize..100_000, byte in prop::sample::select(vec![0xc0u8, 0x90, 0x80, 0xa0, 0])) {
        let length = u32::try_from(count).unwrap().to_be_bytes();
        let list = [&[0xdd][..], &length, &vec![byte; count]].concat();
        prop_assert!(decoding(&list) <= allowed(list.len()));
        // The same where a field is expected that the receiver does not know, and where one is buffered.
        for field in [&b"x"[..], b"outcome", b"capabilities", b"spec", b"event", b"files", b"fetched"] {
            let key = [&[0xa0 | field.len() as u8], field].concat();
            let map = [&[0x81][..], &key, &list].concat();
            prop_assert!(decoding(&map) <= allowed(map.len()), "{field:?}");
        }
    }
}

#[test]
fn a_message_of_the_largest_size_takes_bounded_memory() {
    // `max_payload` of a server may be raised to 64 MiB.
    let count = 64 << 20;
    for byte in [0xc0u8, 0x90, 0x93] {
        let list =
            [&[0x81, 0xa1, b'x', 0xdd][..], &u32::try_from(count).unwrap().to_be_bytes(), &vec![byte; count]]
                .concat();
        let taken = decoding(&list);
        assert!(taken < 1 << 20, "{taken} bytes");
    }
    let zeros = format!("{{\"x\": [{}0]}}", "0,".repeat(count / 2));
    assert!(decoding(zeros.as_bytes()) < 1 << 20);
}

#[test]
fn a_claimed_adapter_is_not_allocated() {
    let layout = Layout::new(vec![TensorSpec { name: "w".into(), shape: vec![MAX_VALUES] }]).unwrap();
    let file =
        safetensors::serialize(Vec::<(String, safetensors::tensor::TensorView<'_>)>::new(), None).unwrap();
    let taken = peak(|| assert!(read_checkpoint(&file, &layout).is_err()));
    assert!(taken < 1 << 16, "{taken} bytes");
}

#[test]
fn claimed_tensors_of_a_model_are_not_allocated() {
    // A graph whose only initializer says that two gigabytes of raw data follow.
    let claim = [0x3a, 0x0c, 0x2a, 0x0a, 0x4a, 0xff, 0xff, 0xff, 0xff, 0x07, 0, 0, 0, 0];
    let taken = peak(|| assert!(Model::from_bytes(claim.to_vec()).is_err()));
    assert!(taken < 1 << 16, "{taken} bytes");
}
