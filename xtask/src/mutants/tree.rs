//! Copies of the source tree that mutants are applied to.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::patch::Mutant;
use crate::command::{ask, cargo, check};
use crate::progress::Progress;

/// A copy of the tracked files.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    files: BTreeSet<PathBuf>,
}

impl Tree {
    /// Copies the tracked files of the workspace, as they are in the work tree, to `root`.
    pub(crate) fn of_workspace(root: PathBuf) -> Result<Self> {
        let source = crate::workspace_root();
        let listed = ask(Command::new("git")
            .args(["ls-files", "-z"])
            .current_dir(source))
        .context("`git ls-files` failed")?;
        let files = listed
            .split_terminator('\0')
            .map(PathBuf::from)
            // A file may be deleted and still be tracked.
            .filter(|file| source.join(file).is_file())
            .collect();
        let tree = Self { root, files };
        tree.copy_from(source)?;
        Ok(tree)
    }

    /// A copy of this tree at `root`.
    pub(crate) fn copied_to(&self, root: PathBuf) -> Result<Self> {
        let files = self.files.clone();
        let tree = Self { root, files };
        tree.copy_from(&self.root)?;
        Ok(tree)
    }

    /// Where it is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes every file what it is in `source`. Files that are so already are not touched: a new
    /// time of change would have everything built again.
    pub(crate) fn copy_from(&self, source: &Path) -> Result<()> {
        for file in &self.files {
            let (from, to) = (source.join(file), self.root.join(file));
            let wanted =
                fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
            if fs::read(&to).is_ok_and(|present| present == wanted) {
                continue;
            }
            if let Some(folder) = to.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&to, wanted).with_context(|| format!("cannot write {}", to.display()))?;
        }
        self.remove_others(&self.root)
    }

    /// Removes what is below `folder` and not one of the files.
    fn remove_others(&self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.remove_others(&path)?;
                match fs::remove_dir(&path) {
                    Err(error) if error.kind() != ErrorKind::DirectoryNotEmpty => {
                        return Err(error.into());
                    }
                    _ => {}
                }
            } else if path
                .strip_prefix(&self.root)
                .is_ok_and(|file| !self.files.contains(file))
            {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Applies a mutant's patch, as it was when it was read.
    pub(crate) fn apply(&self, mutant: &Mutant, progress: &Progress) -> Result<()> {
        let file = self.root.with_extension("patch");
        fs::write(&file, &mutant.text)
            .with_context(|| format!("cannot write {}", file.display()))?;
        apply(&self.root, mutant, &file, &[], progress)
    }
}

/// Checks that a mutant's patch applies to the work tree.
pub(crate) fn check_applies(mutant: &Mutant, progress: &Progress) -> Result<()> {
    let root = crate::workspace_root();
    apply(root, mutant, &mutant.file, &["--check"], progress)
}

fn apply(
    root: &Path,
    mutant: &Mutant,
    file: &Path,
    options: &[&str],
    progress: &Progress,
) -> Result<()> {
    let mut command = Command::new("git");
    command.arg("apply").args(options).arg(file);
    command.current_dir(root);
    // Inside a repository, git takes a patch's paths from its root, and silently leaves out what
    // is elsewhere. No repository is looked for beyond the root.
    if let Some(parent) = root.parent() {
        command.env("GIT_CEILING_DIRECTORIES", parent);
    }
    check(&mut command, progress)
        .map(drop)
        .with_context(|| format!("`{}` no longer applies; make its patch anew", mutant.name))
}

/// Cargo's target directory for the workspace.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let metadata = ask(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))
        .context("`cargo metadata` failed")?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let directory = metadata["target_directory"].as_str().unwrap_or_default();
    ensure!(!directory.is_empty(), "Cargo names no target directory");
    Ok(directory.into())
}
