//! What crosses the socket to the broker.

use std::sync::{Mutex, PoisonError};

use fedpeft_bus::{Bus, Traffic};
use prometheus::{
    IntCounter, IntCounterVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// The counters of a connection, as they are when somebody looks.
pub(crate) struct TrafficMetrics {
    bus: Bus,
    /// Two scrapes at once must not add the same bytes twice.
    reading: Mutex<()>,
    bytes: IntCounterVec,
    messages: IntCounterVec,
    connections: IntCounter,
}

impl TrafficMetrics {
    pub fn new(bus: Bus) -> prometheus::Result<Self> {
        let help = "Bytes on the socket to the NATS server by direction (sent, received), protocol lines included; \
                    under TLS, before encryption.";
        let bytes = IntCounterVec::new(Opts::new("fedpeft_nats_bytes_total", help), &["direction"])?;
        let help = "Messages to and from the NATS server by direction (sent, received).";
        let messages = IntCounterVec::new(Opts::new("fedpeft_nats_messages_total", help), &["direction"])?;
        let help = "Connections made to the NATS server: more than one were lost and made anew.";
        let connections = IntCounter::new("fedpeft_nats_connections_total", help)?;
        Ok(Self { bus, reading: Mutex::new(()), bytes, messages, connections })
    }

    fn all(&self) -> [&dyn Collector; 3] {
        [&self.bytes, &self.messages, &self.connections]
    }

    fn read(&self) {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let Traffic { sent, received, messages_sent, messages_received, connections } = self.bus.traffic();
        let counters = [
            (self.bytes.with_label_values(&["sent"]), sent),
            (self.bytes.with_label_values(&["received"]), received),
            (self.messages.with_label_values(&["sent"]), messages_sent),
            (self.messages.with_label_values(&["received"]), messages_received),
            (self.connections.clone(), connections),
        ];
        for (counter, value) in counters {
            counter.inc_by(value.saturating_sub(counter.get()));
        }
    }
}

impl Collector for TrafficMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}
