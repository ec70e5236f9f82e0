//! NATS and JetStream: streams, blobs, key-value records, services, measured bytes.
