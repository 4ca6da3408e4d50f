//! One mutant: a patch with a header that says what it breaks.
//!
//! ```text
//! Rule: G12
//! Why: hardware that reads the entry between the stores sees Present with the old rest.
//! Tests: lib unit::tables::
//! Tests: conformance transactions::
//!
//! diff --git a/src/unit/tables.rs b/src/unit/tables.rs
//! …
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::target::Target;

/// Where the patches are, seen from the root of the workspace.
const FOLDER: &str = "tests/mutants";

/// What the first line of the patch proper begins with.
const PATCH_START: &str = "diff --git ";

/// Tests of one target that are tried first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) target: Target,
    /// Parts of the tests' names; empty for all of the target.
    pub(crate) filters: Vec<String>,
}

impl Selection {
    /// All tests of a target.
    pub(crate) const fn all(target: Target) -> Self {
        Self {
            target,
            filters: Vec::new(),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let name = words.next().context("`Tests:` names no target")?;
        Ok(Self {
            target: Target::named(name)?,
            filters: words.map(str::to_owned).collect(),
        })
    }
}

/// One deliberate fault of the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mutant {
    /// The patch's file name without its ending.
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    /// What is in the file.
    pub(crate) text: String,
    /// The requirement it breaks.
    pub(crate) rule: String,
    /// Why it must not survive.
    pub(crate) why: String,
    /// What is tried before all quick tests.
    pub(crate) first: Vec<Selection>,
}

impl Mutant {
    fn parse(file: &Path, text: &str) -> Result<Self> {
        let name = file.file_stem().context("the patch has no name")?;
        let mut mutant = Self {
            name: name.to_string_lossy().into_owned(),
            file: file.to_owned(),
            text: text.to_owned(),
            rule: String::new(),
            why: String::new(),
            first: Vec::new(),
        };
        let mut has_patch = false;
        for line in text.lines() {
            if line.starts_with(PATCH_START) {
                has_patch = true;
                break;
            }
            match line.split_once(": ") {
                Some(("Rule", value)) => mutant.rule = value.trim().to_owned(),
                Some(("Why", value)) => mutant.why = value.trim().to_owned(),
                Some(("Tests", value)) => mutant.first.push(Selection::parse(value)?),
                _ if line.trim().is_empty() => {}
                _ => bail!("unknown header line `{line}`"),
            }
        }
        ensure!(has_patch, "no line begins with `{PATCH_START}`");
        ensure!(!mutant.rule.is_empty(), "the header has no `Rule:`");
        ensure!(!mutant.why.is_empty(), "the header has no `Why:`");
        ensure!(!mutant.first.is_empty(), "the header has no `Tests:`");
        Ok(mutant)
    }
}

/// All mutants of the workspace, by name.
pub(crate) fn all() -> Result<Vec<Mutant>> {
    let folder = crate::workspace_root().join(FOLDER);
    let mut mutants = Vec::new();
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let file = entry?.path();
        if file.extension().is_none_or(|ending| ending != "patch") {
            continue;
        }
        let context = || format!("{}", file.display());
        let text = fs::read_to_string(&file).with_context(context)?;
        mutants.push(Mutant::parse(&file, &text).with_context(context)?);
    }
    mutants.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(mutants)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: &str = "Rule: G12\nWhy: a: b.\nTests: lib one two\nTests: conformance\n\n\
        diff --git a/x b/x\n--- a/x\n";

    #[test]
    fn the_header_says_rule_reason_and_tests() {
        let mutant = Mutant::parse(Path::new("/x/name.patch"), COMPLETE).unwrap();
        assert_eq!(mutant.name, "name");
        assert_eq!(mutant.rule, "G12");
        assert_eq!(mutant.why, "a: b.");
        let first = Selection {
            target: Target::Lib,
            filters: vec!["one".into(), "two".into()],
        };
        assert_eq!(mutant.first, [first, Selection::all(Target::Conformance)]);
    }

    #[test]
    fn a_patch_without_its_whole_header_is_refused() {
        for missing in ["Rule: ", "Why: ", "Tests: ", "diff --git "] {
            let text: String = COMPLETE
                .lines()
                .filter(|line| !line.starts_with(missing) && !line.starts_with("---"))
                .flat_map(|line| [line, "\n"])
                .collect();
            assert!(
                Mutant::parse(Path::new("name.patch"), &text).is_err(),
                "{missing}"
            );
        }
        let unknown = COMPLETE.replace("lib", "nothing");
        assert!(Mutant::parse(Path::new("name.patch"), &unknown).is_err());
    }

    #[test]
    fn every_mutant_of_the_workspace_is_readable() {
        assert!(!all().unwrap().is_empty());
    }
}
