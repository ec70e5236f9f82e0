//! Round orchestration service.

fn main() {}
