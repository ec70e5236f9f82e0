//! Nothing to use: the tests are in `check/`, what they compare with is described in `README.md`.
