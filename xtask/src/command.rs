//! Running other programs.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::progress::Progress;

/// Cargo as it was started, so that its toolchain is kept.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::workspace_root());
    command
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let name = |text: &OsStr| text.to_string_lossy().into_owned();
    let program = name(command.get_program());
    let program = program.rsplit('/').next().unwrap_or(&program).to_owned();
    let arguments = command.get_args().map(name);
    std::iter::once(program)
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

/// What a command printed, and how it ended.
pub(crate) struct Outcome {
    /// Whether its exit status was 0.
    pub(crate) success: bool,
    /// Standard output and standard error, in the order of arrival.
    pub(crate) text: String,
}

/// Sends each line of `source` to `sender`; bytes that are not UTF-8 are replaced.
pub(crate) fn forward_lines<T: Send + 'static>(
    source: impl Read + Send + 'static,
    sender: mpsc::Sender<T>,
    wrap: fn(String) -> T,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(source);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(count) if count > 0) {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']).to_owned();
            if sender.send(wrap(text)).is_err() {
                break;
            }
            line.clear();
        }
    })
}

/// Runs a command to its end, keeps its output and shows its latest line.
pub(crate) fn capture(command: &mut Command, progress: &Progress) -> Result<Outcome> {
    let program = shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{program}`"))?;
    let (sender, lines) = mpsc::channel();
    let readers = [
        child
            .stdout
            .take()
            .map(|pipe| forward_lines(pipe, sender.clone(), |line| line)),
        child
            .stderr
            .take()
            .map(|pipe| forward_lines(pipe, sender.clone(), |line| line)),
    ];
    drop(sender);
    let mut text = String::new();
    for line in lines {
        progress.at(&line);
        text.push_str(&line);
        text.push('\n');
    }
    for reader in readers.into_iter().flatten() {
        let _ = reader.join();
    }
    let success = child.wait()?.success();
    Ok(Outcome { success, text })
}

/// As [`capture`], but a failing command is an error that carries its output.
pub(crate) fn check(command: &mut Command, progress: &Progress) -> Result<String> {
    let outcome = capture(command, progress)?;
    if !outcome.success {
        bail!("`{}` failed\n{}", shown(command), outcome.text.trim_end());
    }
    Ok(outcome.text)
}

/// The standard output of a command that only tells something, or `None` if it fails.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
