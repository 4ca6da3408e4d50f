//! Random programs on the model and on QEMU: the package `vtd-differential`.

use anyhow::{Result, bail};

use crate::command::{capture, cargo, shown};
use crate::progress::Progress;
use crate::qemu::Qemu;

/// How the line starts that names a known deviation which a full run never met.
const NEVER_MET: &str = "never met: ";

/// How the line starts that says why nothing was run.
const SKIPPED: &str = "skipped: ";

/// How a run ended that did not fail.
pub(crate) enum Checked {
    /// Nothing differs but what is known: the sums, and known deviations that were never met.
    Agrees(String),
    /// Nothing was run, and why.
    Skipped(String),
}

/// Runs them; more of them, in more configurations, with `full`.
pub(crate) fn check_model(qemu: &Qemu, full: bool, progress: &Progress) -> Result<Checked> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "vtd-differential", "--"]);
    command.arg("--qemu").arg(qemu.path());
    if full {
        command.arg("--full");
    }
    let outcome = capture(&mut command, progress)?;
    if outcome.success {
        return Ok(Checked::Agrees(remark(&outcome.text)));
    }
    let mut lines = outcome.text.lines();
    match lines.find_map(|line| line.strip_prefix(SKIPPED)) {
        Some(why) => Ok(Checked::Skipped(why.to_owned())),
        None => bail!("`{}` failed\n{}", shown(&command), outcome.text.trim_end()),
    }
}

/// What is worth telling of the output of a run that passed.
fn remark(output: &str) -> String {
    let sums = output
        .lines()
        .rfind(|line| line.ends_with("known deviations met"));
    let never: Vec<_> = output
        .lines()
        .filter_map(|line| line.strip_prefix(NEVER_MET))
        .collect();
    let mut remark = sums.unwrap_or_default().to_owned();
    if !never.is_empty() {
        remark.push_str("; ");
        remark.push_str(NEVER_MET);
        remark.push_str(&never.join(", "));
    }
    remark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_what_was_never_met_are_told() {
        let output = "legacy: 5 programs\n10 programs, 9 DMA, 1 of 3 known deviations met\n";
        let sums = "10 programs, 9 DMA, 1 of 3 known deviations met";
        assert_eq!(remark(output), sums);
        let output = format!("{output}never met: a\nnever met: b\n");
        assert_eq!(remark(&output), format!("{sums}; never met: a, b"));
    }
}
