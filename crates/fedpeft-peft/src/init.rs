//! Where new tensors begin. Every tensor has a stream of its own, so that what one holds does not depend on
//! which others there are.

use fedpeft_onnx::Tensor;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use rand_distr::{Distribution, StandardNormal};

/// A seeded source of initial values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Init {
    pub seed: u64,
}

impl Init {
    /// Uniform in `[-bound, bound)`.
    pub fn uniform(self, name: &str, shape: &[usize], bound: f64) -> Tensor {
        let mut random = self.stream(name);
        // 24 bits are what an f32 in [0, 1) holds exactly.
        let mut draw = || f64::from(random.next_u32() >> 8) / f64::from(1u32 << 24);
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| ((2.0 * draw() - 1.0) * bound) as f32).collect();
        Tensor::f32(shape, &values)
    }

    /// Normal around zero.
    pub fn normal(self, name: &str, shape: &[usize], deviation: f64) -> Tensor {
        let mut random = self.stream(name);
        let mut draw = || Distribution::<f64>::sample(&StandardNormal, &mut random);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| (draw() * deviation) as f32).collect();
        Tensor::f32(shape, &values)
    }

    fn stream(self, name: &str) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        // FNV-1a: any hash that no platform changes.
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        random.set_stream(name.bytes().fold(0xcbf2_9ce4_8422_2325, hash));
        random
    }
}

/// Zeros.
pub(crate) fn zeros(shape: &[usize]) -> Tensor {
    Tensor::f32(shape, &vec![0.0; shape.iter().product()])
}

/// Ones.
pub(crate) fn ones(shape: &[usize]) -> Tensor {
    Tensor::f32(shape, &vec![1.0; shape.iter().product()])
}
