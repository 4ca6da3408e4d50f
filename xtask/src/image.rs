//! Building the micro-hypervisor image.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{cargo, check};
use crate::progress::Progress;

/// The bare-metal target of the image and of the panic-freedom ELF.
pub(crate) const TARGET: &str = "x86_64-unknown-none";

/// The command that builds the image: the one place that knows how.
fn build_command() -> Command {
    let script = crate::workspace_root().join("linker/microhv.ld");
    let mut command = cargo();
    command
        .args(["rustc", "--package", "vtd-nest", "--bin", "microhv"])
        .args(["--features", "microhv", "--target", TARGET, "--release"])
        .args(["--message-format", "json-render-diagnostics"])
        .args([
            "--",
            "-C",
            "relocation-model=static",
            "-C",
            "code-model=small",
        ])
        .arg("-C")
        .arg(format!("link-arg=-T{}", script.display()));
    command
}

/// The command that lints the image.
pub(crate) fn clippy_command() -> Command {
    let mut command = cargo();
    command
        .args(["clippy", "--package", "vtd-nest", "--bin", "microhv"])
        .args(["--features", "microhv", "--target", TARGET, "--release"])
        .args(["--", "-D", "warnings"]);
    command
}

/// Builds the image and returns its path.
pub(crate) fn build(progress: &Progress) -> Result<PathBuf> {
    let output = check(&mut build_command(), progress)?;
    executable(&output, "microhv").context("the build named no executable")
}

/// The executable of the binary `name` in Cargo's JSON messages.
pub(crate) fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_taken_from_the_message_of_that_binary() {
        let messages = r#"
   Compiling something
{"reason":"compiler-artifact","target":{"name":"vtd_nest"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"other"},"executable":"/x/other"}
{"reason":"compiler-artifact","target":{"name":"microhv"},"executable":"/x/microhv"}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(executable(messages, "microhv"), Some("/x/microhv".into()));
        assert_eq!(executable(messages, "absent"), None);
    }
}
