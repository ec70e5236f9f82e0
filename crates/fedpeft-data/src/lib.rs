//! Dataset readers and federated partitioners.
