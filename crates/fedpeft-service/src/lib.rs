//! What every service binary shares: configuration, logs, health and metrics endpoints, shutdown.
