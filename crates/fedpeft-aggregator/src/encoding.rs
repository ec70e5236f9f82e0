//! Adapters as they cross the wire, and as they are folded: with a pipeline these are two things.
//!
//! Folding reads plain values in chunks, from memory or from a file. A pipeline needs all values at once: a run that has
//! one takes a few times its adapter in memory, for one adapter at a time.

use std::{
    io::{self, Read, Write},
    ops::RangeInclusive,
};

use bytes::Bytes;
use fedpeft_bus::Bus;
use fedpeft_codec::{Codec, CodecError, Layout, Pipeline, as_bytes, decode_update, least_plain_bytes, view};
use fedpeft_protocol::{Round, run::Encoded, run::RunSpec};
use tokio::task::spawn_blocking;

use crate::{
    model::{Model, ModelError},
    spool::{Adapter, Spool, Target},
};

/// Bytes that an encoded adapter may have; one of less rank has fewer.
pub(crate) fn sizes((uplink, ranks): (Pipeline, bool), layout: &Layout) -> RangeInclusive<u64> {
    let most = Codec::new(uplink, layout).most_bytes();
    if uplink.is_plain() { least_plain_bytes(layout, ranks)..=most } else { 1..=most }
}

/// The plain values of an update, written to `target`; `base` is the adapter that it began with.
pub(crate) fn decoded(
    (uplink, ranks, layout): (Pipeline, bool, &Layout),
    encoded: &Adapter,
    base: &Adapter,
    mut target: Target,
) -> io::Result<Result<Adapter, CodecError>> {
    let (encoded, base) = (bytes(encoded)?, if uplink.delta() { bytes(base)? } else { Bytes::new() });
    let decode = || {
        let values = if uplink.delta() { Some(view(&base, layout)?) } else { None };
        decode_update((uplink, ranks), layout, &encoded, values.as_deref())
    };
    match decode() {
        Ok(values) => {
            target.write_all(&as_bytes(&values))?;
            Ok(Ok(target.done()))
        }
        Err(error) => Ok(Err(error)),
    }
}

/// What clients make of a global adapter that the run's downlink encodes, which is the global adapter from then on,
/// and the blob that goes to them. An adapter that is sent as it is has no other form.
pub(crate) async fn sent(
    (bus, spool): (&Bus, &Spool),
    model: &Model,
    spec: &RunSpec,
    round: Round,
    adapter: Adapter,
) -> Result<(Adapter, Option<Encoded>), ModelError> {
    let pipeline = spec.downlink;
    if pipeline.is_plain() {
        return Ok((adapter, None));
    }
    let mut target = model.target(bus, spool, model.layout.bytes())?;
    let (layout, seed) = (model.layout.clone(), spec.seed);
    let encoding = spawn_blocking(move || {
        let plain = bytes(&adapter)?;
        let codec = Codec::new(pipeline, &layout);
        match view(&plain, &layout).and_then(|values| codec.broadcast(&values, seed, round)) {
            Ok((encoded, values)) => {
                target.write_all(&as_bytes(&values))?;
                io::Result::Ok(Ok((encoded, target.done())))
            }
            Err(error) => Ok(Err(error)),
        }
    });
    let (encoded, adapter) =
        encoding.await?.map_err(|source| spool.unusable(source))?.map_err(ModelError::Downlink)?;
    let size = encoded.len() as u64;
    let digest = bus.put_blob(encoded).await?.digest;
    Ok((adapter, Some(Encoded { digest, size })))
}

/// All of an adapter, in memory.
pub(crate) fn bytes(adapter: &Adapter) -> io::Result<Bytes> {
    if let Adapter::Held(bytes) = adapter {
        return Ok(bytes.clone());
    }
    let mut bytes = Vec::new();
    adapter.reader().read_to_end(&mut bytes)?;
    Ok(bytes.into())
}
