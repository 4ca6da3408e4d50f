//! Which lines of the model its own tests run: the bench must itself be known.
//!
//! The tests are built with the compiler's coverage counters in a target folder of their own, and
//! the toolchain's LLVM tools turn what they count into lines. Test modules do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::command::{cargo, check};
use crate::progress::{Mark, Progress};

/// The package whose lines are looked at, and where they are.
const PACKAGE: &str = "vtd-model";
const SOURCES: &str = "tests/model/src";

/// What to look at.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Fails below this share of covered lines, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    at_least: f64,
    /// Writes the figures as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Lines of one file.
#[derive(Default, Debug, PartialEq, Eq)]
struct FileCoverage {
    /// How often each line ran.
    lines: BTreeMap<u32, u64>,
    /// Where functions start, what they are called and how often they ran.
    functions: BTreeMap<u32, (String, u64)>,
}

impl FileCoverage {
    fn covered(&self) -> usize {
        self.lines.values().filter(|count| **count > 0).count()
    }

    /// Lines that did not run, neighbours as one range.
    fn missed_lines(&self) -> Vec<String> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for (&line, _) in self.lines.iter().filter(|(_, count)| **count == 0) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == line => *last = line,
                _ => ranges.push((line, line)),
            }
        }
        ranges
            .into_iter()
            .map(|(first, last)| {
                if first == last {
                    first.to_string()
                } else {
                    format!("{first}-{last}")
                }
            })
            .collect()
    }

    fn missed_functions(&self) -> BTreeSet<&str> {
        let missed = self.functions.values().filter(|(_, count)| *count == 0);
        missed.map(|(name, _)| name.as_str()).collect()
    }

    /// Leaves out what lies at or behind a line.
    fn cut_at(&mut self, line: u32) {
        self.lines.split_off(&line);
        self.functions.split_off(&line);
    }
}

fn percent(covered: usize, all: usize) -> f64 {
    if all == 0 {
        100.0
    } else {
        100.0 * covered as f64 / all as f64
    }
}

/// Reads the tracefile that `llvm-cov export -format=lcov` prints.
fn parse_tracefile(text: &str) -> Result<BTreeMap<PathBuf, FileCoverage>> {
    let mut files: BTreeMap<PathBuf, FileCoverage> = BTreeMap::new();
    let mut file = PathBuf::new();
    // Instances of one function have names of their own, and their line in common.
    let mut line_of: BTreeMap<String, u32> = BTreeMap::new();
    for text in text.lines() {
        let wrong = || format!("`{text}` is no line of a tracefile");
        let (kind, value) = text.split_once(':').unwrap_or((text, ""));
        let pair = || value.split_once(',').with_context(wrong);
        match kind {
            "SF" => {
                file = PathBuf::from(value);
                line_of.clear();
            }
            "FN" => {
                let (line, name) = pair()?;
                let line = line.parse().with_context(wrong)?;
                line_of.insert(name.to_owned(), line);
                let functions = &mut files.entry(file.clone()).or_default().functions;
                functions.entry(line).or_insert((readable(name), 0));
            }
            "FNDA" => {
                let (count, name) = pair()?;
                let count: u64 = count.parse().with_context(wrong)?;
                let line = line_of.get(name).with_context(wrong)?;
                let functions = &mut files.entry(file.clone()).or_default().functions;
                if let Some((_, sum)) = functions.get_mut(line) {
                    *sum = sum.saturating_add(count);
                }
            }
            "DA" => {
                let (line, count) = pair()?;
                let line = line.parse().with_context(wrong)?;
                let count: u64 = count.parse().with_context(wrong)?;
                let lines = &mut files.entry(file.clone()).or_default().lines;
                let sum = lines.entry(line).or_default();
                *sum = sum.saturating_add(count);
            }
            _ => {}
        }
    }
    Ok(files)
}

/// A function's path without its crate's hash.
fn readable(mangled: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(mangled))
}

/// The line on which a source's test module starts.
fn test_module_line(source: &str) -> Option<u32> {
    let lines: Vec<&str> = source.lines().collect();
    let at = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests"))?;
    u32::try_from(at + 1).ok()
}

/// One row of the report.
#[derive(Serialize)]
struct Row {
    file: String,
    lines: usize,
    covered: usize,
    percent: f64,
    missed_lines: Vec<String>,
    missed_functions: Vec<String>,
}

/// The whole report.
#[derive(Serialize)]
struct Report {
    lines: usize,
    covered: usize,
    percent: f64,
    files: Vec<Row>,
}

impl Report {
    fn new(files: BTreeMap<PathBuf, FileCoverage>, root: &Path) -> Result<Self> {
        let mut rows = Vec::new();
        for (path, mut coverage) in files {
            let source = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            if let Some(line) = test_module_line(&source) {
                coverage.cut_at(line);
            }
            let (lines, covered) = (coverage.lines.len(), coverage.covered());
            rows.push(Row {
                file: path
                    .strip_prefix(root)
                    .unwrap_or(&path)
                    .display()
                    .to_string(),
                lines,
                covered,
                percent: percent(covered, lines),
                missed_lines: coverage.missed_lines(),
                missed_functions: coverage
                    .missed_functions()
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
            });
        }
        let lines = rows.iter().map(|row| row.lines).sum();
        let covered = rows.iter().map(|row| row.covered).sum();
        Ok(Self {
            lines,
            covered,
            percent: percent(covered, lines),
            files: rows,
        })
    }

    fn print(&self) {
        let width = self.files.iter().map(|row| row.file.len()).max();
        let width = width.unwrap_or_default().max("all".len());
        println!(
            "{:width$}  {:>6}  {:>7}  {:>7}",
            "file", "lines", "covered", "percent"
        );
        let all = ("all", self.lines, self.covered, self.percent);
        let rows = self
            .files
            .iter()
            .map(|row| (row.file.as_str(), row.lines, row.covered, row.percent));
        for (file, lines, covered, percent) in rows.chain([all]) {
            println!("{file:width$}  {lines:>6}  {covered:>7}  {percent:>6.1}%");
        }
        for row in self.files.iter().filter(|row| !row.missed_lines.is_empty()) {
            println!("\n{}: lines {}", row.file, row.missed_lines.join(", "));
            for function in &row.missed_functions {
                println!("  never called: {function}");
            }
        }
    }
}

/// The paths of test executables in Cargo's messages.
fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

/// Builds the tests with counters, runs them, and gives the tracefile.
fn measure(progress: &Progress) -> Result<String> {
    let tools = crate::setup::llvm_tools()?;
    let folder = crate::target_folder()?.join("coverage");
    let profiles = folder.join("profiles");
    if profiles.exists() {
        fs::remove_dir_all(&profiles)?;
    }
    fs::create_dir_all(&profiles)?;
    let build = |arguments: &[&str]| {
        let mut command = cargo();
        command
            .env("RUSTFLAGS", "-C instrument-coverage")
            // Build scripts and macros count too; nobody looks at theirs.
            .env("LLVM_PROFILE_FILE", folder.join("build-%p.profraw"))
            .arg("test")
            .args(["--package", PACKAGE, "--lib", "--tests", "--target-dir"])
            .arg(&folder)
            .args(arguments);
        command
    };
    let messages = check(
        &mut build(&["--no-run", "--message-format", "json"]),
        progress,
    )?;
    let tests = executables(&messages);
    if tests.is_empty() {
        bail!("{PACKAGE} has no tests");
    }
    check(
        build(&[]).env("LLVM_PROFILE_FILE", profiles.join("%p-%m.profraw")),
        progress,
    )?;
    let merged = folder.join("merged.profdata");
    let counted: Vec<PathBuf> = fs::read_dir(&profiles)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    check(
        Command::new(tools.join("llvm-profdata"))
            .args(["merge", "-sparse", "-o"])
            .arg(&merged)
            .args(&counted),
        progress,
    )?;
    let mut export = Command::new(tools.join("llvm-cov"));
    export
        .args(["export", "-format=lcov", "-instr-profile"])
        .arg(&merged);
    for (index, test) in tests.iter().enumerate() {
        if index > 0 {
            export.arg("-object");
        }
        export.arg(test);
    }
    export
        .arg("-sources")
        .arg(crate::workspace_root().join(SOURCES));
    crate::command::ask(&mut export).context("`llvm-cov export` failed")
}

/// Prints the coverage; whether it is as high as asked.
pub(crate) fn coverage(arguments: &Arguments) -> Result<bool> {
    let progress = Progress::start("coverage of the model");
    let report = measure(&progress)
        .and_then(|text| parse_tracefile(&text))
        .and_then(|files| Report::new(files, crate::workspace_root()));
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            progress.finish(Mark::Fail, "");
            return Err(error);
        }
    };
    let is_enough = report.percent >= arguments.at_least;
    let mark = if is_enough { Mark::Pass } else { Mark::Fail };
    progress.finish(mark, &format!("{:.1}% of lines", report.percent));
    report.print();
    if let Some(path) = &arguments.report {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(is_enough)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACEFILE: &str = "\
SF:/a/one.rs
FN:3,_RNvCs1_3one3two
FN:3,_RNvCs2_3one3two
FN:9,other
FNDA:0,_RNvCs1_3one3two
FNDA:5,_RNvCs2_3one3two
FNDA:0,other
FNF:2
DA:3,5
DA:4,0
DA:5,0
DA:9,0
LF:4
end_of_record
";

    #[test]
    fn lines_that_did_not_run_are_told_as_ranges() {
        let files = parse_tracefile(TRACEFILE).unwrap();
        let mut file = files.into_values().next().unwrap();
        assert_eq!((file.lines.len(), file.covered()), (4, 1));
        assert_eq!(file.missed_lines(), ["4-5", "9"]);
        assert_eq!(file.missed_functions(), ["other"].into());
        file.cut_at(9);
        assert_eq!(file.missed_lines(), ["4-5"]);
        assert!(file.missed_functions().is_empty());
        assert!(parse_tracefile("SF:a\nDA:x\n").is_err());
    }

    #[test]
    fn test_modules_do_not_count() {
        let source = "fn a() {}\n\n#[cfg(test)]\nmod tests {\n}\n";
        assert_eq!(test_module_line(source), Some(3));
        assert_eq!(test_module_line("#[cfg(test)]\nuse x;\n"), None);
    }

    #[test]
    fn shares_of_nothing_are_whole() {
        assert_eq!(percent(0, 0), 100.0);
        assert_eq!(percent(1, 4), 25.0);
    }

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let messages = "warning\n{\"executable\":null}\n{\"executable\":\"/t/model-1\"}\n";
        assert_eq!(executables(messages), [PathBuf::from("/t/model-1")]);
    }
}
