//! Clients whose LoRA factors have less rank than the global adapter's (HetLoRA, Cho et al., arXiv 2401.06432; FlexLoRA,
//! Bai et al., arXiv 2402.11505).
//!
//! A client of rank `r` trains and sends the first `r` rows of every `A [rank, inputs]` and columns of every `B [outputs,
//! rank]`; the rest is zero. It trains in graphs of full rank: factors that are both zero have gradients that are zero. The
//! scale `alpha / rank` stays that of the global adapter.

use std::borrow::Cow;

use crate::{Base, Codec, CodecError, Layout, Pipeline, TensorSpec, header, view};

/// What the names of factors end with, after HF peft.
pub const FACTOR_A: &str = ".lora_A.weight";
/// As [`FACTOR_A`].
pub const FACTOR_B: &str = ".lora_B.weight";

/// A layout, and the same with less rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowRank<'a> {
    full: &'a Layout,
    low: Layout,
}

impl<'a> LowRank<'a> {
    /// `full` with factors of rank `rank` where it has more. None where it has no more anywhere, and for rank 0.
    pub fn new(full: &'a Layout, rank: u64) -> Option<Self> {
        if rank == 0 {
            return None;
        }
        let low = |spec: &TensorSpec| {
            let mut spec = spec.clone();
            if let Some(axis) = rank_axis(&spec) {
                spec.shape[axis] = spec.shape[axis].min(rank);
            }
            spec
        };
        let low = Layout::new(full.tensors().iter().map(low).collect()).ok()?;
        (low != *full).then_some(Self { full, low })
    }

    /// The one of `values` values.
    fn of_values(full: &'a Layout, values: usize) -> Option<Self> {
        let rank = |spec: &TensorSpec| rank_axis(spec).map(|axis| spec.shape[axis]);
        let most = full.tensors().iter().filter_map(rank).max()?;
        // Values grow with the rank.
        let (mut below, mut above) = (0, most);
        while above - below > 1 {
            let rank = below + (above - below) / 2;
            let low = Self::new(full, rank)?;
            match low.low.values().cmp(&values) {
                std::cmp::Ordering::Equal => return Some(low),
                std::cmp::Ordering::Less => below = rank,
                std::cmp::Ordering::Greater => above = rank,
            }
        }
        None
    }

    /// The layout of less rank.
    pub fn layout(&self) -> &Layout {
        &self.low
    }

    /// The part of `values` that a client of this rank has.
    pub fn cut(&self, values: &[f32]) -> Vec<f32> {
        self.moved(self.full, values, &self.low)
    }

    /// What [`Self::cut`] made, with zeros for the rest.
    pub fn pad(&self, values: &[f32]) -> Vec<f32> {
        self.moved(&self.low, values, self.full)
    }

    /// Rows are cut and padded at their end, matrices by rows at theirs.
    fn moved(&self, from: &Layout, values: &[f32], to: &Layout) -> Vec<f32> {
        let mut moved = vec![0.0; to.values()];
        for ((from, source), (to, target)) in from.ranges().zip(to.ranges()) {
            let (source, target) = (&values[source], &mut moved[target]);
            let rows = source.chunks_exact(width(from)).zip(target.chunks_exact_mut(width(to)));
            for (source, target) in rows {
                target.iter_mut().zip(source).for_each(|(target, value)| *target = *value);
            }
        }
        moved
    }
}

/// Values of one row.
fn width(spec: &TensorSpec) -> usize {
    spec.shape.last().map_or(1, |last| *last as usize)
}

/// Which axis of a factor is its rank.
fn rank_axis(spec: &TensorSpec) -> Option<usize> {
    let is_matrix = spec.shape.len() == 2;
    match () {
        () if is_matrix && spec.name.ends_with(FACTOR_A) => Some(0),
        () if is_matrix && spec.name.ends_with(FACTOR_B) => Some(1),
        () => None,
    }
}

/// The values of an update, of `layout`, whose client began with `base`, if that is needed. Where `ranks` are mixed, an
/// update whose bytes say that it has less rank is read as such, and padded.
///
/// # Errors
/// Bytes that are no update of that pipeline and layout.
pub fn decode_update<'a>(
    (pipeline, ranks): (Pipeline, bool),
    layout: &Layout,
    encoded: &'a [u8],
    base: Option<&[f32]>,
) -> Result<Cow<'a, [f32]>, CodecError> {
    let values = match pipeline.is_plain() {
        true => Some(encoded.len() / 4),
        false => header::declared_values(encoded),
    };
    let low = values.filter(|values| ranks && *values != layout.values());
    let Some(low) = low.and_then(|values| LowRank::of_values(layout, values)) else {
        return match pipeline.is_plain() {
            true => view(encoded, layout),
            false => {
                Codec::new(pipeline, layout).decode(encoded, base.map(Base::new).as_ref()).map(Cow::Owned)
            }
        };
    };
    let base = base.map(|base| low.cut(base));
    let codec = Codec::new(pipeline, low.layout());
    let values = codec.decode(encoded, base.as_deref().map(Base::new).as_ref())?;
    Ok(Cow::Owned(low.pad(&values)))
}

/// Bytes of the smallest plain update: that of rank 1, where `ranks` are mixed.
pub fn least_plain_bytes(layout: &Layout, ranks: bool) -> u64 {
    let lowest = if ranks { LowRank::new(layout, 1) } else { None };
    lowest.map_or(layout.bytes(), |low| low.layout().bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Seed, encode};

    fn layout(rank: u64) -> Layout {
        let spec = |name: &str, shape: &[u64]| TensorSpec { name: name.into(), shape: shape.to_vec() };
        let factors = [spec("q.lora_A.weight", &[rank, 2]), spec("q.lora_B.weight", &[3, rank])];
        Layout::new(factors.into_iter().chain([spec("head.bias", &[1])]).collect()).unwrap()
    }

    #[test]
    fn ranks_are_cut_and_padded() {
        let full = [1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 7.0];
        let two = layout(2);
        let one = LowRank::new(&two, 1).unwrap();
        assert_eq!(*one.layout(), layout(1));
        let cut = one.cut(&full);
        assert_eq!(cut, [1.0, 2.0, 10.0, 30.0, 50.0, 7.0]);
        assert_eq!(one.pad(&cut), [1.0, 2.0, 0.0, 0.0, 10.0, 0.0, 30.0, 0.0, 50.0, 0.0, 7.0]);
        for rank in [0, 2, 3] {
            assert_eq!(LowRank::new(&two, rank), None, "rank {rank}");
        }
    }

    #[test]
    fn an_adapter_without_factors_has_no_rank() {
        let plain = Layout::new(vec![TensorSpec { name: "head.bias".into(), shape: vec![3] }]).unwrap();
        assert_eq!(LowRank::new(&plain, 1), None);
        assert_eq!(least_plain_bytes(&plain, true), 12);
        let long = encode(&[0.0; 4]);
        let error = decode_update((Pipeline::default(), true), &plain, &long, None).unwrap_err();
        assert!(matches!(error, CodecError::Size { .. }), "{error}");
    }

    proptest! {
        /// The rank of an update follows from its bytes, plain or not, and only where that is allowed.
        #[test]
        fn an_update_says_its_rank(
            full in 1u64..12,
            rank in 1u64..12,
            stages in prop::sample::select(vec!["fp32", "delta,zstd", "delta,int8=nearest,zstd", "fp16"]),
            values in prop::collection::vec(-1f32..1.0, 61),
        ) {
            let layout = layout(full);
            let values = &values[..layout.values()];
            let base = vec![0.25; layout.values()];
            let pipeline: Pipeline = stages.parse().unwrap();
            let low = LowRank::new(&layout, rank);
            prop_assert_eq!(low.is_some(), rank < full);
            let (own, own_base, own_layout) = match &low {
                Some(low) => (low.cut(values), low.cut(&base), low.layout()),
                None => (values.to_vec(), base.clone(), &layout),
            };
            let base_needed = pipeline.delta().then(|| Base::new(&own_base));
            let codec = Codec::new(pipeline, own_layout);
            let encoded = codec.encode(&own, base_needed.as_ref(), Seed::new(1, 1, "client")).unwrap();
            let decoded = decode_update((pipeline, true), &layout, &encoded, Some(&base)).unwrap();
            let wanted = low.as_ref().map_or_else(|| values.to_vec(), |low| low.pad(&own));
            for (got, wanted) in decoded.iter().zip(&wanted) {
                prop_assert!((got - wanted).abs() <= 0.02, "{got} {wanted}");
            }
            prop_assert_eq!(decoded.iter().filter(|value| **value == 0.0).count() >= layout.values() - own.len(), true);
            let strict = decode_update((pipeline, false), &layout, &encoded, Some(&base));
            prop_assert_eq!(strict.is_ok(), low.is_none());
            if pipeline.is_plain() {
                prop_assert!(least_plain_bytes(&layout, true) <= encoded.len() as u64);
            }
        }
    }
}
