//! Model and artifact registry service.

fn main() {}
