//! Cohort sampling and order-independent aggregation.
