//! The panic-freedom check: an ELF that keeps every public function, and must link.
//!
//! The functions are read from the library's sources, so none is forgotten. The ELF's panic
//! handler calls a function that does not exist: it links only if the optimizer has proved every
//! panic away. That the check can fail is proved each time with a planted function.

mod generate;
mod instances;
mod library;
mod locate;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

use crate::command::{capture, cargo};
use crate::image::{TARGET, executable};
use crate::progress::Progress;

/// The function that the panic handler calls.
const MISSING: &str = "vtd_nest_a_panic_is_reachable";

/// The package and its binary.
const PACKAGE: &str = "panic-freedom";

/// What the code of an ELF may take at most, in bytes (requirements, section 4).
pub(crate) const TEXT_LIMIT_BYTES: u64 = 128 << 10;

/// Functions that are named when an ELF is too large.
const LARGEST_FUNCTIONS: usize = 10;

/// What the check found.
#[derive(Debug)]
pub(crate) struct Figures {
    /// Functions kept.
    pub(crate) functions: usize,
    /// Each capacity with the size of its ELF's code in bytes.
    pub(crate) text_bytes: Vec<(u64, u64)>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} functions; text", self.functions)?;
        for (capacity, bytes) in &self.text_bytes {
            write!(f, " {bytes} bytes with a capacity of {capacity},")?;
        }
        write!(f, " at most {TEXT_LIMIT_BYTES}")
    }
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
    let mut figures = Figures {
        functions: 0,
        text_bytes: Vec::new(),
    };
    for &capacity in &instances.capacities {
        let kept = generate::generate(&library, &instances.of_capacity(capacity))?;
        let list = crate::target_folder()?.join("panic-freedom-keep.rs");
        write_if_changed(&list, &kept.text)?;
        if figures.text_bytes.is_empty()
            && let Link::Linked(path) = link(&list, &["--features", "planted"], &[], progress)?
        {
            bail!("{} links although it holds a planted panic", path.display());
        }
        let elf = elf_without_panic(&list, progress)?;
        let text_bytes = text_size(&elf)?;
        if text_bytes > TEXT_LIMIT_BYTES {
            bail!(
                "{text_bytes} bytes of text with a capacity of {capacity}, at most {TEXT_LIMIT_BYTES}; \
                 the largest functions:\n  {}",
                largest_functions(&elf)?.join("\n  ")
            );
        }
        figures.functions = kept.functions;
        figures.text_bytes.push((capacity, text_bytes));
    }
    Ok(figures)
}

/// The ELF that keeps what is listed, or an error that says where a panic is reachable from.
fn elf_without_panic(list: &Path, progress: &Progress) -> Result<Vec<u8>> {
    let Link::Linked(path) = link(list, &[], &[], progress)? else {
        let open = ["-C", "link-arg=--unresolved-symbols=ignore-all"];
        let Link::Linked(path) = link(list, &[], &open, progress)? else {
            bail!("a panic is reachable, and where from cannot be told");
        };
        let found = locate::functions_that_panic(&fs::read(&path)?)?;
        // Else a link that found nothing to do would take this file for the ELF.
        let _ = fs::remove_file(&path);
        bail!("a panic is reachable from:\n  {}", found.join("\n  "));
    };
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
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

/// The largest functions of an ELF, each with its size in bytes.
fn largest_functions(elf: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(elf).context("cannot read the ELF")?;
    let mut functions: Vec<(u64, String)> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text)
        .filter_map(|symbol| {
            let name = format!("{:#}", rustc_demangle::demangle(symbol.name().ok()?));
            Some((symbol.size(), name))
        })
        .collect();
    functions.sort_unstable_by_key(|(size, _)| std::cmp::Reverse(*size));
    functions.truncate(LARGEST_FUNCTIONS);
    let shown = functions
        .iter()
        .map(|(size, name)| format!("{size:>6} {name}"));
    Ok(shown.collect())
}
