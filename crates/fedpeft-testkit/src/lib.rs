//! Test harness: a real nats-server, located assets, temporary stores.
