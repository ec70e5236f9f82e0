//! The ledger: bytes of a round by direction and kind, and how many of them were bodies of messages.
//!
//! Whatever is counted anywhere was measured in this crate: messages as they are sent and delivered
//! ([`Measured`]), blobs as the messages that they took ([`Measured::transfer`]).

use fedpeft_protocol::round::{ByteKind, BytesByKind, Direction, Payload, Transfer};

use crate::Measured;

impl Measured {
    /// What one message counts as: the adapter in it, and what has its shape, as `adapter`, all the rest as `control`.
    pub fn message<'a>(
        self,
        direction: Direction,
        payloads: impl IntoIterator<Item = &'a Payload>,
    ) -> [Transfer; 2] {
        let adapter = payloads.into_iter().map(|payload| payload.held() as u64).sum();
        let rest = |bytes: u64| bytes.saturating_sub(adapter);
        let control = Self { payload: rest(self.payload), total: rest(self.total) };
        let adapter = Self { payload: adapter, total: adapter };
        [adapter.transfer(direction, ByteKind::Adapter), control.transfer(direction, ByteKind::Control)]
    }
}

/// Bytes of many messages and of those who sent and got them.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Bytes of subjects, headers and bodies.
    pub total: Counts,
    /// Of these, bodies. The rest is envelopes: subjects and headers.
    pub payload: Counts,
}

impl Ledger {
    /// Counts bytes.
    pub fn count(&mut self, transfer: Transfer) {
        self.total.add(transfer);
        self.payload.add_bodies(transfer);
    }
}

const DIRECTIONS: [Direction; 2] = [Direction::Up, Direction::Down];
const KINDS: usize = ByteKind::ALL.len();

/// Bytes by direction and kind. What clients report of themselves is added saturating: a lie may spoil a figure, never
/// the round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([u64; DIRECTIONS.len() * KINDS]);

impl Counts {
    /// Adds what was transferred.
    pub fn add(&mut self, Transfer { direction, kind, size, .. }: Transfer) {
        // Both are declared in the order of their lists.
        let count = &mut self.0[direction as usize * KINDS + kind as usize];
        *count = count.saturating_add(size);
    }

    /// Adds the bodies of messages in what was transferred: almost all, where the sender does not say.
    pub fn add_bodies(&mut self, transfer: Transfer) {
        let Transfer { size, payload, .. } = transfer;
        self.add(Transfer { size: if payload == 0 { size } else { payload.min(size) }, ..transfer });
    }

    /// In few bytes.
    pub fn packed(&self) -> PackedCounts {
        PackedCounts::new(&self.0).unwrap_or_else(|| PackedCounts::Full(Box::new(*self)))
    }

    /// Adds what others have counted.
    pub fn extend(&mut self, counts: &Self) {
        self.0.iter_mut().zip(counts.0).for_each(|(sum, count)| *sum = sum.saturating_add(count));
    }

    /// Bytes of all kinds.
    pub fn sum(&self, direction: Direction) -> u64 {
        let at = direction as usize * KINDS;
        self.0[at..at + KINDS].iter().copied().fold(0, u64::saturating_add)
    }

    /// As reports have them; pairs that did not occur are left out.
    pub fn by_kind(&self) -> BytesByKind {
        let pairs = DIRECTIONS.into_iter().flat_map(|direction| ByteKind::ALL.map(|kind| (direction, kind)));
        let counted = pairs.zip(self.0).filter(|(_, bytes)| *bytes > 0);
        counted
            .map(|((direction, kind), bytes)| (format!("{}.{}", direction.label(), kind.label()), bytes))
            .collect()
    }
}

/// The counts of one of many clients, in 24 bytes where they fit: which of them are not 0, and these as numbers of seven
/// bits a byte, the low ones first (LEB128).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackedCounts {
    /// They fit.
    Short([u8; SHORT]),
    /// They do not.
    Full(Box<Counts>),
}

/// Bytes beside the tag of [`PackedCounts`].
const SHORT: usize = 23;
/// Of these, those that say which counts follow.
const MASK: usize = 2;

impl Default for PackedCounts {
    fn default() -> Self {
        Self::Short([0; SHORT])
    }
}

impl PackedCounts {
    /// Nothing, where they do not fit.
    fn new(counts: &[u64]) -> Option<Self> {
        let (mut short, mut at, mut mask) = ([0; SHORT], MASK, 0u16);
        for (place, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            mask |= 1 << place;
            let mut rest = *count;
            while rest > 0 {
                let more = u8::from(rest > 0x7f) << 7;
                *short.get_mut(at)? = (rest & 0x7f) as u8 | more;
                (at, rest) = (at + 1, rest >> 7);
            }
        }
        short[..MASK].copy_from_slice(&mask.to_le_bytes());
        Some(Self::Short(short))
    }

    /// The counts.
    pub fn unpacked(&self) -> Counts {
        let short = match self {
            Self::Short(short) => short,
            Self::Full(counts) => return **counts,
        };
        let (mask, mut bytes) = (u16::from_le_bytes([short[0], short[1]]), short[MASK..].iter());
        let mut counts = Counts::default();
        for (_, count) in counts.0.iter_mut().enumerate().filter(|(place, _)| mask >> place & 1 == 1) {
            for (shift, byte) in (0..).step_by(7).zip(bytes.by_ref()) {
                *count |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_adapter_in_a_message_is_told_from_its_envelope() {
        let (mut ledger, down) = (Ledger::default(), Direction::Down);
        let payload = Payload::inline(vec![0; 100]);
        let task = Measured { payload: 110, total: 130 }.message(down, Some(&payload));
        let update = Measured { payload: 20, total: 40 }.message(Direction::Up, None);
        task.into_iter().chain(update).for_each(|transfer| ledger.count(transfer));
        ledger.count(Measured { payload: 5, total: 9 }.transfer(Direction::Up, ByteKind::Evaluation));
        assert_eq!((ledger.total.sum(down), ledger.total.sum(Direction::Up)), (130, 49));
        let backbone = Measured { payload: 6, total: 7 }.transfer(down, ByteKind::Backbone);
        ledger.count(backbone);
        // Of one that does not say, all is taken for bodies.
        ledger.count(Transfer { size: u64::MAX, payload: 0, ..backbone });
        assert_eq!((ledger.total.sum(down), ledger.total.sum(Direction::Up)), (u64::MAX, 49));
        let map = |pairs: &[(&str, u64)]| -> BytesByKind {
            pairs.iter().map(|(key, size)| ((*key).to_owned(), *size)).collect()
        };
        let most = [("down.backbone", u64::MAX)];
        let total = [("down.adapter", 100), ("down.control", 30), ("up.control", 40), ("up.evaluation", 9)];
        assert_eq!(ledger.total.by_kind(), map(&[&total[..], &most].concat()));
        let payload = [("down.adapter", 100), ("down.control", 10), ("up.control", 20), ("up.evaluation", 5)];
        assert_eq!(ledger.payload.by_kind(), map(&[&payload[..], &most].concat()));
        let mut twice = ledger.total;
        twice.extend(&ledger.total);
        assert_eq!(twice.sum(Direction::Up), 98);
    }

    proptest! {
        #[test]
        fn packed_counts_are_the_same(
            counts in proptest::array::uniform10(prop_oneof![Just(0), 0..300_000u64, any::<u64>(), Just(u64::MAX)])
        ) {
            let counts = Counts(counts);
            let packed = counts.packed();
            prop_assert_eq!(packed.unpacked(), counts);
        }
    }

    #[test]
    fn counts_of_a_round_are_packed() {
        assert_eq!(size_of::<PackedCounts>(), 24);
        // A backbone, artifacts, adapters both ways, and what is beside them.
        let counts = Counts([221_000, 900, 0, 0, 0, 221_000, 2_000, 88_000_000, 900_000, 0]);
        assert!(matches!(counts.packed(), PackedCounts::Short(_)));
        assert!(matches!(Counts([u64::MAX; 10]).packed(), PackedCounts::Full(_)));
        assert_eq!(PackedCounts::default().unpacked(), Counts::default());
    }
}
