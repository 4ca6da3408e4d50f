//! The test targets: how each is built and run, and how its output is read.
//!
//! The one place to change when a target gets another harness.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::patch::Selection;
use crate::command::{Outcome, capture, cargo, forward_lines};
use crate::progress::Progress;

/// Silence after which a test counts as hanging: each test prints a line when it ends.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// How long the output of a test that was killed is still read.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// A set of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The unit tests of the library.
    Lib,
    /// The scenarios, on the model.
    Conformance,
    /// The corpus of firmware tables.
    Firmware,
    /// The model's own tests.
    Model,
}

impl Target {
    /// The target that a patch's header names.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let all = [Self::Lib, Self::Conformance, Self::Firmware, Self::Model];
        all.into_iter()
            .find(|target| target.name() == name)
            .with_context(|| format!("no test target is named `{name}`"))
    }

    /// Its name in headers and reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lib => "lib",
            Self::Conformance => "conformance",
            Self::Firmware => "firmware",
            Self::Model => "model",
        }
    }

    const fn cargo_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Lib => &["--package", "vtd-nest", "--lib"],
            Self::Conformance => &["--package", "vtd-nest", "--test", "conformance"],
            Self::Firmware => &["--package", "vtd-nest", "--test", "firmware"],
            Self::Model => &["--package", "vtd-model", "--lib", "--tests"],
        }
    }
}

/// What runs the tests of one executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harness {
    /// The compiler's own: `test NAME ... ok`.
    Libtest,
    /// The scenario suite: a line for each scenario, with its name and how it ended.
    Suite,
}

impl Harness {
    /// The harness of a target, as the manifest of its package says.
    fn of(target: Target, manifest: &str) -> Result<Self> {
        let manifest: toml::Table = toml::from_str(manifest)?;
        let tests = manifest.get("test").and_then(toml::Value::as_array);
        let own = tests.into_iter().flatten().any(|test| {
            test.get("name").and_then(toml::Value::as_str) == Some(target.name())
                && test.get("harness").and_then(toml::Value::as_bool) == Some(false)
        });
        Ok(if own { Self::Suite } else { Self::Libtest })
    }

    fn arguments(self, filters: &[String]) -> Vec<String> {
        match self {
            // One at a time, so that the test that hangs or aborts is known.
            Self::Libtest => [&["--test-threads=1".to_owned()], filters].concat(),
            // Where caches keep everything most is seen.
            Self::Suite => ["--bench", "hoarder"]
                .map(str::to_owned)
                .into_iter()
                .chain(
                    filters
                        .iter()
                        .flat_map(|filter| ["--scenario".to_owned(), filter.clone()]),
                )
                .collect(),
        }
    }

    /// What a line says of a test.
    fn read(self, line: &str) -> Option<Said<'_>> {
        match self {
            Self::Libtest => {
                let (name, ended) = line.strip_prefix("test ")?.rsplit_once(" ...")?;
                match ended.trim() {
                    "" => Some(Said::Started(name)),
                    "FAILED" => Some(Said::Failed(name)),
                    "ok" => Some(Said::Passed(name)),
                    _ => None,
                }
            }
            Self::Suite => {
                let (ended, run) = line.split_once(' ')?;
                // What follows the time is no name.
                let name = run.split(" (").next()?.trim();
                match ended {
                    "FAIL" => Some(Said::Failed(name)),
                    "pass" => Some(Said::Passed(name)),
                    _ => None,
                }
            }
        }
    }
}

/// What one line of output says.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    Started(&'a str),
    Passed(&'a str),
    Failed(&'a str),
}

/// How the tests of a selection ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All passed; their names.
    Passed(BTreeSet<String>),
    /// What failed first: a test's name, with what happened if it did not simply fail.
    Failed(String),
}

/// One test executable, ready to run.
#[derive(Debug)]
pub(crate) struct Executable {
    path: PathBuf,
    /// The folder of its package, where its tests run.
    folder: PathBuf,
    harness: Harness,
    target: Target,
}

/// Builds a target of the tree in `tree`.
pub(crate) fn build(
    target: Target,
    tree: &Path,
    target_directory: &Path,
    progress: &Progress,
) -> Result<Vec<Executable>> {
    let mut command = cargo();
    command
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", target_directory)
        .args([
            "test",
            "--no-run",
            "--message-format",
            "json-render-diagnostics",
        ])
        .args(target.cargo_arguments());
    // The same crates are built for each mutant: what a test does not need is left out. What was
    // built before is never built upon: after a run that was stopped midway it may hold a mutant.
    command.env("CARGO_INCREMENTAL", "0");
    command.env("CARGO_PROFILE_DEV_DEBUG", "0");
    let Outcome { success, text } = capture(&mut command, progress)?;
    ensure!(success, "{}", without_messages(&text));
    let mut executables = Vec::new();
    for (path, manifest) in test_executables(&text) {
        let text = std::fs::read_to_string(&manifest)?;
        executables.push(Executable {
            path,
            harness: Harness::of(target, &text)?,
            folder: manifest.parent().unwrap_or(tree).to_owned(),
            target,
        });
    }
    ensure!(
        !executables.is_empty(),
        "the build of `{}` named no test executable",
        target.name()
    );
    Ok(executables)
}

/// The output of a build without Cargo's JSON messages: what the compiler says.
fn without_messages(output: &str) -> String {
    let lines = output.lines().filter(|line| !line.starts_with('{'));
    lines.collect::<Vec<_>>().join("\n")
}

/// The test executables, each with its package's manifest, in Cargo's JSON messages.
fn test_executables(messages: &str) -> Vec<(PathBuf, PathBuf)> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| {
            message["profile"]["test"] == true || message["target"]["kind"][0] == "test"
        })
        .filter_map(|message| {
            let executable = message["executable"].as_str()?;
            let manifest = message["manifest_path"].as_str()?;
            Some((executable.into(), manifest.into()))
        })
        .collect()
}

/// Runs the tests of a selection until one fails.
///
/// # Errors
///
/// If an executable cannot be started or the selection names no test.
pub(crate) fn run(
    executables: &[Executable],
    selection: &Selection,
    progress: &Progress,
) -> Result<Ended> {
    let mut names = BTreeSet::new();
    for executable in executables {
        match executable.run(&selection.filters, progress)? {
            Ended::Passed(more) => names.extend(more),
            failed @ Ended::Failed(_) => return Ok(failed),
        }
    }
    if names.is_empty() {
        let filters = selection.filters.join(" ");
        bail!(
            "`Tests: {} {filters}` names no test",
            selection.target.name()
        );
    }
    Ok(Ended::Passed(names))
}

impl Executable {
    fn run(&self, filters: &[String], progress: &Progress) -> Result<Ended> {
        let mut child = Command::new(&self.path)
            .args(self.harness.arguments(filters))
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", self.path.display()))?;
        let (sender, lines) = mpsc::channel();
        if let Some(output) = child.stdout.take() {
            forward_lines(output, sender, |line| line);
        }
        let mut passed = BTreeSet::new();
        let mut running = None;
        loop {
            match lines.recv_timeout(SILENCE_LIMIT) {
                Ok(line) => {
                    progress.at(&line);
                    match self.harness.read(&line) {
                        Some(Said::Passed(name)) => _ = passed.insert(name.to_owned()),
                        Some(Said::Started(name)) => running = Some(name.to_owned()),
                        Some(Said::Failed(name)) => {
                            let words: Vec<_> = name.split_whitespace().collect();
                            let failed = Ended::Failed(words.join(" "));
                            stop(&mut child)?;
                            return Ok(failed);
                        }
                        None => {}
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    stop(&mut child)?;
                    let running = self.unfinished(&lines);
                    return Ok(Ended::Failed(format!("timeout of {running}")));
                }
            }
        }
        let status = child.wait()?;
        if status.success() {
            return Ok(Ended::Passed(passed));
        }
        let running = running.unwrap_or_else(|| self.target.name().to_owned());
        Ok(Ended::Failed(format!("{running} ({status})")))
    }

    /// The test that was running when its executable was killed: the compiler's harness ends the
    /// line only after the test, so it comes with the end of the output.
    fn unfinished(&self, lines: &Receiver<String>) -> String {
        let mut running = None;
        while let Ok(line) = lines.recv_timeout(DRAIN_LIMIT) {
            if let Some(Said::Started(name)) = self.harness.read(&line) {
                running = Some(name.to_owned());
            }
        }
        running.unwrap_or_else(|| self.target.name().to_owned())
    }
}

fn stop(child: &mut Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_compilers_harness_are_read() {
        for (line, said) in [
            ("test a::b ... ok", Some(Said::Passed("a::b"))),
            ("test a::b ... FAILED", Some(Said::Failed("a::b"))),
            ("test a::b ... ignored, why", None),
            ("test a::b ... ", Some(Said::Started("a::b"))),
            ("test result: ok. 1 passed; 0 failed; 0 ignored;", None),
            ("running 3 tests", None),
        ] {
            assert_eq!(Harness::Libtest.read(line), said, "{line}");
        }
    }

    #[test]
    fn lines_of_the_suite_are_read() {
        for (line, said) in [
            (
                "FAIL    S12  model/nested  a_name (3 ms): why (a.rs:1)",
                Some(Said::Failed("S12  model/nested  a_name")),
            ),
            (
                "pass    S1   model/nested  a_name (3 ms)",
                Some(Said::Passed("S1   model/nested  a_name")),
            ),
            ("skip    S12  model/nested  a_name (0 ms): why", None),
            ("pending S12  model/nested  a_name (0 ms): why", None),
            ("+ pass   F fail   . skip   p pending", None),
            ("2 runs: 1 passed, 1 failed", None),
            ("", None),
        ] {
            assert_eq!(Harness::Suite.read(line), said, "{line}");
        }
    }

    #[test]
    fn the_harness_is_what_the_manifest_says() {
        let manifest = "[[test]]\nname = \"conformance\"\n";
        let of = |manifest: &str| Harness::of(Target::Conformance, manifest).unwrap();
        assert_eq!(of(manifest), Harness::Libtest);
        assert_eq!(of(&format!("{manifest}harness = false\n")), Harness::Suite);
    }

    #[test]
    fn a_failed_build_shows_what_the_compiler_says() {
        let output = "   Compiling a\n{\"reason\":\"build-finished\"}\nerror: no\n";
        assert_eq!(without_messages(output), "   Compiling a\nerror: no");
    }

    #[test]
    fn only_test_executables_are_taken() {
        let messages = r#"
   Compiling something
{"reason":"compiler-artifact","target":{"kind":["lib"]},"profile":{"test":false},"executable":null,"manifest_path":"/x/Cargo.toml"}
{"reason":"compiler-artifact","target":{"kind":["bin"]},"profile":{"test":false},"executable":"/x/bin","manifest_path":"/x/Cargo.toml"}
{"reason":"compiler-artifact","target":{"kind":["lib"]},"profile":{"test":true},"executable":"/x/lib","manifest_path":"/x/Cargo.toml"}
{"reason":"compiler-artifact","target":{"kind":["test"]},"profile":{"test":true},"executable":"/x/test","manifest_path":"/x/Cargo.toml"}
"#;
        let paths: Vec<_> = test_executables(messages)
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        assert_eq!(paths, [Path::new("/x/lib"), Path::new("/x/test")]);
    }
}
