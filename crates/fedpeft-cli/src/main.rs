//! The fedpeft command line.

fn main() {}
