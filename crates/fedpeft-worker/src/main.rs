//! Client worker: trains and evaluates adapters on local data.

fn main() {}
