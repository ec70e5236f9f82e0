//! A round is sampled whole or not at all.

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanKind, TraceContextExt, TraceId},
};
use opentelemetry_sdk::trace::{Config, SamplingResult, ShouldSample};

use crate::round;

/// What `OTEL_TRACES_SAMPLER` says, or else everything. The root span of a round is made when the round closes; its
/// children are sampled as if they were it, by the id of their trace, and come to the same decision.
#[derive(Debug, Clone)]
pub(crate) struct Rounds(Box<dyn ShouldSample>);

impl Rounds {
    pub fn from_environment() -> Self {
        Self(Config::default().sampler)
    }
}

impl ShouldSample for Rounds {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let parent = parent.filter(|parent| !round::is_root(parent.span().span_context()));
        self.0.should_sample(parent, trace, name, kind, attributes, links)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};
    use opentelemetry_sdk::trace::{Sampler, SamplingDecision};

    use super::*;

    #[test]
    fn children_of_a_round_are_sampled_as_its_root() {
        let half = Rounds(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(0.5))).into());
        let decide = |parent: Option<Context>, trace| {
            half.should_sample(parent.as_ref(), trace, "", &SpanKind::Internal, &[], &[]).decision
        };
        let mut sampled = 0;
        for number in 0..64u64 {
            let mut bytes = [1; 16];
            bytes[8..].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            bytes[15] |= 1;
            let trace = TraceId::from_bytes(bytes);
            let root = SpanId::from_bytes(bytes[8..].try_into().unwrap());
            let parent = |span| {
                let (flags, state) = (TraceFlags::SAMPLED, TraceState::NONE);
                let context = SpanContext::new(trace, span, flags, true, state);
                Some(Context::new().with_remote_span_context(context))
            };
            assert_eq!(decide(parent(root), trace), decide(None, trace));
            sampled += u32::from(decide(None, trace) == SamplingDecision::RecordAndSample);
            let other = SpanId::from_bytes([7; 8]);
            assert_eq!(decide(parent(other), trace), SamplingDecision::RecordAndSample);
        }
        assert!((16..48).contains(&sampled), "{sampled}");
    }
}
