//! Bytes of a round, per client, direction and kind.

use std::collections::BTreeMap;

use fedpeft_bus::Measured;
use fedpeft_protocol::{
    ClientId,
    round::{ByteKind, BytesByKind, Direction, Payload, Transfer},
};

/// Bytes of a round. What clients report of themselves is added saturating: a lie may spoil a figure, never
/// the round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(BTreeMap<ClientId, BTreeMap<(Direction, ByteKind), u64>>);

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
        let control = measured.total.saturating_sub(adapter);
        self.transfer(client, Transfer { direction, kind: ByteKind::Adapter, size: adapter });
        self.transfer(client, Transfer { direction, kind: ByteKind::Control, size: control });
    }

    /// Counts bytes that took other messages.
    pub fn transfer(&mut self, client: &ClientId, transfer: Transfer) {
        let of_client = self.0.entry(client.clone()).or_default();
        let sum = of_client.entry((transfer.direction, transfer.kind)).or_default();
        *sum = sum.saturating_add(transfer.size);
    }

    /// Bytes of one client.
    pub fn of_client(&self, client: &ClientId, direction: Direction) -> u64 {
        self.0.get(client).map_or(0, |kinds| sum(kinds, direction))
    }

    /// Bytes of all clients.
    pub fn total(&self, direction: Direction) -> u64 {
        self.0.values().map(|kinds| sum(kinds, direction)).fold(0, u64::saturating_add)
    }

    /// Bytes of all clients by direction and kind; pairs that did not occur are left out.
    pub fn by_kind(&self) -> BytesByKind {
        let mut split = BytesByKind::new();
        for ((direction, kind), size) in self.0.values().flatten().filter(|(_, size)| **size > 0) {
            let sum = split.entry(format!("{}.{}", direction.label(), kind.label())).or_default();
            *sum = sum.saturating_add(*size);
        }
        split
    }
}

fn sum(kinds: &BTreeMap<(Direction, ByteKind), u64>, direction: Direction) -> u64 {
    kinds.iter().filter(|((of, _), _)| *of == direction).map(|(_, size)| *size).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_in_a_message_is_told_from_its_envelope() {
        let (a, b) = (ClientId::new("a").unwrap(), ClientId::new("b").unwrap());
        let mut ledger = Ledger::default();
        let payload = Payload::inline(vec![0; 100]);
        ledger.message(&a, Direction::Down, Measured { payload: 110, total: 130 }, Some(&payload));
        ledger.message(&a, Direction::Up, Measured { payload: 20, total: 40 }, None);
        ledger.transfer(&b, Transfer { direction: Direction::Down, kind: ByteKind::Backbone, size: 7 });
        ledger
            .transfer(&b, Transfer { direction: Direction::Down, kind: ByteKind::Backbone, size: u64::MAX });
        assert_eq!((ledger.of_client(&a, Direction::Down), ledger.of_client(&a, Direction::Up)), (130, 40));
        assert_eq!(ledger.total(Direction::Up), 40);
        assert_eq!(ledger.total(Direction::Down), u64::MAX);
        let split = ledger.by_kind();
        let expected =
            [("down.adapter", 100), ("down.backbone", u64::MAX), ("down.control", 30), ("up.control", 40)];
        assert_eq!(split, expected.map(|(key, size)| (key.to_owned(), size)).into());
    }
}
