//! The ledger: bytes of a round, per client, direction and kind, and how many of them were bodies of messages.
//!
//! Whatever is counted anywhere was measured in this crate: messages as they are sent and delivered
//! ([`Measured`]), blobs as the messages that they took ([`Measured::transfer`]).

use std::collections::BTreeMap;

use fedpeft_protocol::{
    ClientId,
    round::{ByteKind, BytesByKind, Direction, Payload, Transfer},
};

use crate::Measured;

/// Bytes of a round. What clients report of themselves is added saturating: a lie may spoil a figure, never
/// the round.
#[derive(Debug, Clone, Default)]
pub struct Ledger(BTreeMap<ClientId, BTreeMap<(Direction, ByteKind), Measured>>);

impl Ledger {
    /// Counts one message. The adapter in it, and what has its shape, is `adapter`, all the rest `control`.
    pub fn message<'a>(
        &mut self,
        client: &ClientId,
        direction: Direction,
        measured: Measured,
        payloads: impl IntoIterator<Item = &'a Payload>,
    ) {
        let held = payloads.into_iter().map(|payload| match payload {
            Payload::Message { data, .. } => data.len() as u64,
            Payload::Blob { .. } => 0,
        });
        let adapter = held.sum();
        let Measured { payload, total } = measured;
        self.add(client, direction, ByteKind::Adapter, Measured { payload: adapter, total: adapter });
        let (payload, total) = (payload.saturating_sub(adapter), total.saturating_sub(adapter));
        self.add(client, direction, ByteKind::Control, Measured { payload, total });
    }

    /// Counts one message that asks for an evaluation or answers it, all of it.
    pub fn evaluation(&mut self, client: &ClientId, direction: Direction, measured: Measured) {
        self.add(client, direction, ByteKind::Evaluation, measured);
    }

    /// Counts bytes that took other messages.
    pub fn transfer(&mut self, client: &ClientId, transfer: Transfer) {
        let Transfer { direction, kind, size, payload } = transfer;
        // Almost all of it is payload where the sender does not say.
        let payload = if payload == 0 { size } else { payload.min(size) };
        self.add(client, direction, kind, Measured { payload, total: size });
    }

    /// Counts what another ledger has counted.
    pub fn extend(&mut self, other: Self) {
        for (client, kinds) in other.0 {
            for ((direction, kind), measured) in kinds {
                self.add(&client, direction, kind, measured);
            }
        }
    }

    fn add(&mut self, client: &ClientId, direction: Direction, kind: ByteKind, measured: Measured) {
        if measured.total == 0 {
            return;
        }
        let sum = self.0.entry(client.clone()).or_default().entry((direction, kind)).or_default();
        sum.payload = sum.payload.saturating_add(measured.payload);
        sum.total = sum.total.saturating_add(measured.total);
    }

    /// Bytes of one client.
    pub fn of_client(&self, client: &ClientId, direction: Direction) -> u64 {
        self.0.get(client).map_or(0, |kinds| sum(kinds, direction))
    }

    /// Bytes of one client by direction and kind; pairs that did not occur are left out.
    pub fn of_client_by_kind(&self, client: &ClientId) -> BytesByKind {
        split(self.0.get(client).into_iter().flatten(), |measured| measured.total)
    }

    /// Bytes of all clients.
    pub fn total(&self, direction: Direction) -> u64 {
        self.0.values().map(|kinds| sum(kinds, direction)).fold(0, u64::saturating_add)
    }

    /// Bytes of all clients by direction and kind; pairs that did not occur are left out.
    pub fn by_kind(&self) -> BytesByKind {
        split(self.0.values().flatten(), |measured| measured.total)
    }

    /// Of [`Self::by_kind`], the bodies of messages. The rest is envelopes: subjects and headers.
    pub fn payload_by_kind(&self) -> BytesByKind {
        split(self.0.values().flatten(), |measured| measured.payload)
    }
}

type Pair<'a> = (&'a (Direction, ByteKind), &'a Measured);

fn split<'a>(all: impl Iterator<Item = Pair<'a>>, of: fn(&Measured) -> u64) -> BytesByKind {
    let mut split = BytesByKind::new();
    for ((direction, kind), measured) in all.filter(|(_, measured)| measured.total > 0) {
        let sum = split.entry(format!("{}.{}", direction.label(), kind.label())).or_default();
        *sum = sum.saturating_add(of(measured));
    }
    split
}

fn sum(kinds: &BTreeMap<(Direction, ByteKind), Measured>, direction: Direction) -> u64 {
    let of_direction = kinds.iter().filter(|((of, _), _)| *of == direction);
    of_direction.map(|(_, measured)| measured.total).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_in_a_message_is_told_from_its_envelope() {
        let (a, b) = (ClientId::new("a").unwrap(), ClientId::new("b").unwrap());
        let (mut ledger, down) = (Ledger::default(), Direction::Down);
        let payload = Payload::inline(vec![0; 100]);
        ledger.message(&a, down, Measured { payload: 110, total: 130 }, Some(&payload));
        ledger.message(&a, Direction::Up, Measured { payload: 20, total: 40 }, None);
        ledger.evaluation(&a, Direction::Up, Measured { payload: 5, total: 9 });
        let backbone = Measured { payload: 6, total: 7 }.transfer(down, ByteKind::Backbone);
        ledger.transfer(&b, backbone);
        ledger.transfer(&b, Transfer { size: u64::MAX, payload: 0, ..backbone });
        assert_eq!((ledger.of_client(&a, down), ledger.of_client(&a, Direction::Up)), (130, 49));
        assert_eq!(ledger.total(Direction::Up), 49);
        assert_eq!(ledger.total(down), u64::MAX);
        let map = |pairs: &[(&str, u64)]| -> BytesByKind {
            pairs.iter().map(|(key, size)| ((*key).to_owned(), *size)).collect()
        };
        let of_a = [("down.adapter", 100), ("down.control", 30), ("up.control", 40), ("up.evaluation", 9)];
        assert_eq!(ledger.of_client_by_kind(&a), map(&of_a));
        assert_eq!(ledger.by_kind(), map(&[&of_a[..], &[("down.backbone", u64::MAX)]].concat()));
        let payload = [("down.adapter", 100), ("down.control", 10), ("up.control", 20), ("up.evaluation", 5)];
        assert_eq!(ledger.payload_by_kind(), map(&[&payload[..], &[("down.backbone", u64::MAX)]].concat()));
    }
}
