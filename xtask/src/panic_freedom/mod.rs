//! The panic-freedom check: an ELF that keeps every public function, and must link.
//!
//! The functions are read from the library's sources, so none is forgotten. The ELF's panic
//! handler calls a function that does not exist: it links only if the optimizer has proved every
//! panic away. That the check can fail is proved each time with a planted function.

mod generate;
mod instances;
mod library;
mod locate;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

use crate::command::{capture, cargo};
use crate::image::{TARGET, executable};
use crate::progress::Progress;

/// The function that the panic handler calls.
const MISSING: &str = "vtd_nest_a_panic_is_reachable";

/// The package and its binary.
const PACKAGE: &str = "panic-freedom";

/// What the code of the ELF should take at most, in bytes: a target, reported and not enforced, as
/// the ELF holds everything at each capacity.
pub(crate) const TEXT_TARGET_BYTES: u64 = 128 << 10;

/// What the check found.
#[derive(Debug)]
pub(crate) struct Figures {
    /// Functions kept.
    pub(crate) functions: usize,
    /// Instances of them.
    pub(crate) instances: usize,
    /// Size of the ELF's code in bytes.
    pub(crate) text_bytes: u64,
}

/// How linking ended.
enum Link {
    Linked(PathBuf),
    PanicReachable,
}

/// Runs the check; an error says which functions can panic, cannot be listed, or what else is
/// wrong.
pub(crate) fn check(progress: &Progress) -> Result<Figures> {
    let root = crate::workspace_root();
    let table = root.join("tests/panic_freedom/instances.toml");
    let table =
        fs::read_to_string(&table).with_context(|| format!("cannot read {}", table.display()))?;
    let instances = instances::Instances::parse(&table)?;
    let library = library::Library::read(&root.join("src/lib.rs"))?;
    let kept = generate::generate(&library, &instances)?;
    let list = crate::target_folder()?.join("panic-freedom-keep.rs");
    write_if_changed(&list, &kept.text)?;

    if let Link::Linked(path) = link(&list, &["--features", "planted"], &[], progress)? {
        bail!("{} links although it holds a planted panic", path.display());
    }
    let Link::Linked(path) = link(&list, &[], &[], progress)? else {
        let open = ["-C", "link-arg=--unresolved-symbols=ignore-all"];
        let Link::Linked(path) = link(&list, &[], &open, progress)? else {
            bail!("a panic is reachable, and where from cannot be told");
        };
        let found = locate::functions_that_panic(&fs::read(&path)?)?;
        // Else a link that found nothing to do would take this file for the ELF.
        let _ = fs::remove_file(&path);
        bail!("a panic is reachable from:\n  {}", found.join("\n  "));
    };
    let text_bytes = text_size(&fs::read(&path)?)?;
    Ok(Figures {
        functions: kept.functions,
        instances: kept.instances,
        text_bytes,
    })
}

fn write_if_changed(file: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn link_command(list: &Path, cargo_arguments: &[&str], rustc_arguments: &[&str]) -> Command {
    let mut command = cargo();
    command
        .env("VTD_NEST_KEEP", list)
        .args(["rustc", "--package", PACKAGE, "--bin", PACKAGE])
        .args(["--target", TARGET, "--profile", PACKAGE])
        .args(["--message-format", "json-render-diagnostics"])
        .args(cargo_arguments)
        .args(["--", "-C", "relocation-model=static"])
        .args(rustc_arguments);
    command
}

/// Links the ELF. A failure for any other reason than a reachable panic is an error.
fn link(
    list: &Path,
    cargo_arguments: &[&str],
    rustc_arguments: &[&str],
    progress: &Progress,
) -> Result<Link> {
    let mut command = link_command(list, cargo_arguments, rustc_arguments);
    let outcome = capture(&mut command, progress)?;
    if outcome.success {
        let path = executable(&outcome.text, PACKAGE).context("the build named no executable")?;
        return Ok(Link::Linked(path));
    }
    if outcome
        .text
        .contains(&format!("undefined symbol: {MISSING}"))
    {
        return Ok(Link::PanicReachable);
    }
    bail!(
        "the panic-freedom ELF does not build:\n{}",
        first_errors(&outcome.text)
    )
}

/// The first errors of a build, each with the lines that say where.
fn first_errors(output: &str) -> String {
    let lines: Vec<_> = output
        .lines()
        .filter(|line| !line.starts_with('{'))
        .collect();
    let errors: Vec<_> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.starts_with("error"))
        .take(4)
        .flat_map(|(start, _)| lines.iter().skip(start).take(7).copied())
        .collect();
    errors.join("\n")
}

fn text_size(elf: &[u8]) -> Result<u64> {
    let file = object::File::parse(elf).context("cannot read the ELF")?;
    let text = file
        .section_by_name(".text")
        .context("the ELF has no .text")?;
    Ok(text.size())
}
