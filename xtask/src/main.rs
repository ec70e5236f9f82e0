//! Development tasks: assets, demo, tests.

fn main() {}
