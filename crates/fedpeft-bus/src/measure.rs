//! Bytes as they cross the wire.

use std::{ops::AddAssign, sync::atomic::Ordering::Relaxed};

use async_nats::HeaderMap;
use fedpeft_protocol::round::{ByteKind, Direction, Transfer};

use crate::Bus;

/// Size of the messages an operation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// Bytes of the bodies.
    pub payload: u64,
    /// Bytes of subjects, headers and bodies.
    pub total: u64,
}

impl Measured {
    pub(crate) fn of(subject: &str, headers: Option<&HeaderMap>, payload: usize) -> Self {
        let headers = headers.map_or(0, header_bytes);
        Self { payload: payload as u64, total: (subject.len() + headers + payload) as u64 }
    }

    /// As an entry of a [`crate::Ledger`].
    pub fn transfer(self, direction: Direction, kind: ByteKind) -> Transfer {
        Transfer { direction, kind, size: self.total, payload: self.payload }
    }
}

/// What crossed the socket of a connection so far, lost connections included: with protocol lines,
/// acknowledgements, heartbeats and whatever else the broker and we have to say; under TLS, before encryption.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes written.
    pub sent: u64,
    /// Bytes read.
    pub received: u64,
    /// Messages published.
    pub messages_sent: u64,
    /// Messages delivered.
    pub messages_received: u64,
    /// Connections made.
    pub connections: u64,
}

impl Bus {
    /// Bytes on the socket.
    pub fn traffic(&self) -> Traffic {
        let counters = self.client.statistics();
        Traffic {
            sent: counters.out_bytes.load(Relaxed),
            received: counters.in_bytes.load(Relaxed),
            messages_sent: counters.out_messages.load(Relaxed),
            messages_received: counters.in_messages.load(Relaxed),
            connections: counters.connects.load(Relaxed),
        }
    }
}

impl AddAssign for Measured {
    fn add_assign(&mut self, other: Self) {
        self.payload += other.payload;
        self.total += other.total;
    }
}

impl std::iter::Sum for Measured {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let mut sum = Self::default();
        for one in all {
            sum += one;
        }
        sum
    }
}

/// Length of a header block: `NATS/1.0\r\n`, then `name: value\r\n` for each, then `\r\n`.
pub(crate) fn header_bytes(headers: &HeaderMap) -> usize {
    if headers.is_empty() {
        return 0;
    }
    let line = |name: &str, value: &str| name.len() + 2 + value.len() + 2;
    let lines = headers.iter().flat_map(|(name, values)| {
        values.iter().map(move |value| line(AsRef::<str>::as_ref(name), value.as_str()))
    });
    "NATS/1.0\r\n".len() + lines.sum::<usize>() + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_blocks_are_measured_as_written() {
        let mut headers = HeaderMap::new();
        assert_eq!(header_bytes(&headers), 0);
        headers.insert("Nats-Msg-Id", "a/1");
        assert_eq!(header_bytes(&headers), "NATS/1.0\r\nNats-Msg-Id: a/1\r\n\r\n".len());
        let all = [Measured::of("a.b", None, 5), Measured::of("a.b", Some(&headers), 0)];
        let sum: Measured = all.into_iter().sum();
        assert_eq!(sum, Measured { payload: 5, total: 3 + 5 + 3 + 30 });
    }
}
