//! `cargo xtask mutants`: deliberate faults of the library, each of which a test has to find.
//!
//! Each mutant is a patch in `tests/mutants`. It is applied to a copy of the tree, and the quick
//! tests run until the first one fails: those that its header names, then all. One that no test
//! finds has survived: a test is missing.

mod patch;
mod target;
mod tree;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use std::{iter, thread};

use anyhow::{Context, Error, Result, bail, ensure};
use clap::Args;
use console::style;
use serde::Serialize;

use crate::progress::{Mark, Progress};
use crate::report;
use patch::{Mutant, Selection};
use target::{Ended, Executable, Target};
use tree::Tree;

/// What runs after the tests that a mutant names: all quick tests.
const QUICK: [Target; 2] = [Target::Lib, Target::Conformance];

/// Arguments of `mutants`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Arguments {
    /// Only mutants whose name contains this; may be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Lists the mutants and runs nothing.
    #[arg(long)]
    list: bool,
    /// Takes it as given that the tests pass without a mutant.
    #[arg(long)]
    trust_plain: bool,
    /// How many mutants to build and run at once, each in a tree and a target directory of its
    /// own; without it, one for every two processors.
    #[arg(long, value_name = "COUNT")]
    jobs: Option<usize>,
    /// Where to write the JSON report.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What became of a mutant.
#[derive(Debug)]
enum Fate {
    /// A test found it; which.
    Killed(String),
    /// All quick tests pass with it.
    Survived,
    /// It could not be tried.
    Error(Error),
}

/// A mutant that has been tried, as reported.
#[derive(Debug, Serialize)]
struct Done {
    mutant: String,
    rule: String,
    status: &'static str,
    /// The test that found it.
    by: Option<String>,
    seconds: f64,
    /// Why it could not be tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Done {
    fn new(mutant: &Mutant, fate: Fate, started: Instant) -> Self {
        let (status, by, why) = match fate {
            Fate::Killed(by) => ("killed", Some(by), None),
            Fate::Survived => ("survived", None, None),
            Fate::Error(error) => ("error", None, Some(format!("{error:#}"))),
        };
        Self {
            mutant: mutant.name.clone(),
            rule: mutant.rule.clone(),
            status,
            by,
            seconds: (started.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            why,
        }
    }

    /// The line of the summary.
    fn line(&self, width: usize) -> String {
        let status = match self.status {
            "killed" => style("killed  ").green(),
            "survived" => style("SURVIVED").red().bold(),
            _ => style("ERROR   ").red().bold(),
        };
        let remark = self.by.as_deref().or(self.why.as_deref()).unwrap_or("");
        let remark = remark.lines().next().unwrap_or("");
        format!(
            "{status} {:<width$} {:<8} {:>6.1} s  {}",
            self.mutant,
            self.rule,
            self.seconds,
            style(remark).dim()
        )
    }
}

/// Where one mutant after the other is built and run.
struct Workshop<'a> {
    plain: &'a Tree,
    tree: Tree,
    target_directory: PathBuf,
    progress: &'a Progress,
}

impl<'a> Workshop<'a> {
    fn new(folder: &Path, plain: &'a Tree, progress: &'a Progress) -> Result<Self> {
        Ok(Self {
            plain,
            tree: plain.copied_to(folder.join("tree"))?,
            target_directory: folder.join("target"),
            progress,
        })
    }

    fn build(&self, target: Target) -> Result<Vec<Executable>> {
        target::build(
            target,
            self.tree.root(),
            &self.target_directory,
            self.progress,
        )
        .with_context(|| format!("`{}` does not build", target.name()))
    }

    /// Runs all tests without a mutant, and looks whether each filter of the headers names one.
    fn check_plain(&self, mutants: &[Mutant]) -> Result<()> {
        self.tree.copy_from(self.plain.root())?;
        let named = mutants.iter().flat_map(|mutant| &mutant.first);
        let mut targets = QUICK.to_vec();
        for selection in named.clone() {
            if !targets.contains(&selection.target) {
                targets.push(selection.target);
            }
        }
        for target in targets {
            let executables = self.build(target)?;
            let all = Selection::all(target);
            let names = match target::run(&executables, &all, self.progress)? {
                Ended::Passed(names) => names,
                Ended::Failed(name) => bail!("without any mutant, {name} fails"),
            };
            let of_target = named.clone().filter(|selection| selection.target == target);
            for filter in of_target.flat_map(|selection| &selection.filters) {
                ensure!(
                    names.iter().any(|name| name.contains(filter.as_str())),
                    "no test of `{}` is named `{filter}`, but a `Tests:` line says so",
                    target.name()
                );
            }
        }
        Ok(())
    }

    fn fate(&self, mutant: &Mutant) -> Fate {
        match self.killer(mutant) {
            Ok(Some(test)) => Fate::Killed(test),
            Ok(None) => Fate::Survived,
            Err(error) => Fate::Error(error),
        }
    }

    /// The first test that fails with a mutant.
    fn killer(&self, mutant: &Mutant) -> Result<Option<String>> {
        self.tree.copy_from(self.plain.root())?;
        self.tree.apply(mutant, self.progress)?;
        let rest = QUICK.map(Selection::all);
        let mut built: Vec<(Target, Vec<Executable>)> = Vec::new();
        for selection in mutant.first.iter().chain(&rest) {
            let executables = match built
                .iter()
                .position(|(target, _)| *target == selection.target)
            {
                Some(index) => &built[index].1,
                None => {
                    built.push((selection.target, self.build(selection.target)?));
                    &built[built.len() - 1].1
                }
            };
            if let Ended::Failed(test) = target::run(executables, selection, self.progress)? {
                return Ok(Some(test));
            }
        }
        Ok(None)
    }
}

/// Tries the mutants; `true` if a test found each.
pub(crate) fn mutants(arguments: &Arguments) -> Result<bool> {
    let mut mutants = patch::all()?;
    mutants.retain(|mutant| {
        arguments.only.is_empty() || arguments.only.iter().any(|part| mutant.name.contains(part))
    });
    ensure!(!mutants.is_empty(), "no mutant has such a name");
    let width = mutants.iter().map(|mutant| mutant.name.len()).max();
    let width = width.unwrap_or(0);
    if arguments.list {
        for mutant in &mutants {
            println!("{:<width$} {:<8} {}", mutant.name, mutant.rule, mutant.why);
        }
        return Ok(true);
    }
    let progress = Progress::start("mutants");
    let done = try_all(&mutants, arguments, width, &progress)?;
    let killed = count(&done, "killed");
    let ok = killed == done.len();
    progress.finish(if ok { Mark::Pass } else { Mark::Fail }, "");
    println!();
    for one in &done {
        println!("{}", one.line(width));
    }
    println!("\n{}", closing_line(&done));
    if let Some(path) = &arguments.report {
        report::write(path, &done)?;
    }
    Ok(ok)
}

/// Tries the mutants and returns what became of each, in their order.
fn try_all(
    mutants: &[Mutant],
    arguments: &Arguments,
    width: usize,
    progress: &Progress,
) -> Result<Vec<Done>> {
    let folder = tree::target_directory()?.join("mutants");
    // Two runs in the same trees would try each other's mutants.
    let _lock = lock(&folder)?;
    // Taken once: whoever goes on working in the tree changes nothing here.
    let plain = Tree::of_workspace(folder.join("plain"))?;
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let jobs = arguments.jobs.unwrap_or(processors / 2);
    let workshops = (1..=jobs.clamp(1, mutants.len()))
        .map(|number| Workshop::new(&folder.join(number.to_string()), &plain, progress))
        .collect::<Result<Vec<_>>>()?;
    if let Some(first) = workshops.first()
        && !arguments.trust_plain
    {
        first.check_plain(mutants)?;
        progress.line("all tests pass without a mutant");
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for workshop in &workshops {
            scope.spawn(|| {
                let claimed = iter::from_fn(|| {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    mutants.get(index).map(|mutant| (index, mutant))
                });
                for (index, mutant) in claimed {
                    let started = Instant::now();
                    let one = Done::new(mutant, workshop.fate(mutant), started);
                    progress.line(&one.line(width));
                    if let Some(why) = &one.why {
                        progress.line(why);
                    }
                    if let Ok(mut done) = done.lock() {
                        done.push((index, one));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, one)| one).collect())
}

/// Keeps other runs out of a folder for as long as the file is open.
fn lock(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder)?;
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.try_lock()
        .with_context(|| format!("another run uses {}", folder.display()))?;
    Ok(file)
}

/// Checks that every patch still applies; returns how many there are.
pub(crate) fn check_apply(progress: &Progress) -> Result<usize> {
    let mutants = patch::all()?;
    for mutant in &mutants {
        tree::check_applies(mutant, progress)?;
    }
    Ok(mutants.len())
}

fn count(done: &[Done], status: &str) -> usize {
    done.iter().filter(|one| one.status == status).count()
}

/// The line that a machine reads.
fn closing_line(done: &[Done]) -> String {
    format!(
        "{} killed, {} survived, {} errors",
        count(done, "killed"),
        count(done, "survived"),
        count(done, "error")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant() -> Mutant {
        Mutant {
            name: "a".into(),
            file: "a.patch".into(),
            text: String::new(),
            rule: "G1".into(),
            why: "w".into(),
            first: Vec::new(),
        }
    }

    #[test]
    fn the_report_says_which_test_found_the_mutant() {
        let now = Instant::now();
        for (fate, status, by) in [
            (Fate::Killed("t".into()), "killed", Some("t")),
            (Fate::Survived, "survived", None),
        ] {
            let json = serde_json::to_value(Done::new(&mutant(), fate, now)).unwrap();
            let expected = serde_json::json!({
                "mutant": "a", "rule": "G1", "status": status, "by": by, "seconds": 0.0
            });
            assert_eq!(json, expected);
        }
    }

    #[test]
    fn what_could_not_be_tried_is_neither_killed_nor_survived() {
        let fate = Fate::Error(Error::msg("no"));
        let done = [Done::new(&mutant(), fate, Instant::now())];
        assert_eq!(closing_line(&done), "0 killed, 0 survived, 1 errors");
    }
}
