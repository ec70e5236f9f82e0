//! Options that cannot be used: one line on standard error, exit status 1.

use crate::setup::{Setup, within};

async fn fails(setup: &Setup, arguments: &[&str]) -> String {
    let output = within(setup.command(arguments).args(["--log", "off"]).output()).await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
    text
}

#[tokio::test]
async fn mistakes_are_named() {
    let setup = Setup::new().await;
    let cases: [(&[&str], &str); 8] = [
        (&[], "--clients"),
        (&["--clients", "5"], "part 4"),
        (&["--client", "a.b"], "a.b"),
        (&["--client", "a,a"], "twice"),
        (&["--clients", "1", "--ort-lib", "/nonexistent.so"], "/nonexistent.so"),
        (&["--clients", "1", "--device", "gpu"], "cuda:N"),
        (&["--clients", "1", "--data", "/nonexistent.toml"], "/nonexistent.toml"),
        (&["--evaluate", "--evaluate-on", "validation"], "validation_examples"),
    ];
    for (arguments, expected) in cases {
        let text = fails(&setup, arguments).await;
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}
