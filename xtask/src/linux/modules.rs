//! Kernel modules: where they are, and which have to be loaded before which.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

/// A module as it is loaded.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its name, with underscores.
    pub(crate) name: String,
    /// The ELF.
    pub(crate) content: Vec<u8>,
}

/// The named modules in the folder of a kernel and all that they need, each after what it needs.
pub(crate) fn with_dependencies(folder: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(folder, &mut files)?;
    let mut order = Vec::new();
    for name in names {
        add(&canonical(name), &files, &mut order, 0)?;
    }
    Ok(order)
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    order: &mut Vec<Module>,
    depth: u32,
) -> Result<()> {
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    if depth > 32 {
        bail!("the module {name} needs itself");
    }
    let path = files
        .get(name)
        .with_context(|| format!("the kernel has no module {name}"))?;
    let content = read(path)?;
    for needed in depends(&content).with_context(|| format!("{}", path.display()))? {
        add(&needed, files, order, depth + 1)?;
    }
    order.push(Module {
        name: name.to_owned(),
        content,
    });
    Ok(())
}

/// The names of the modules that an ELF says it needs.
fn depends(elf: &[u8]) -> Result<Vec<String>> {
    let elf = object::File::parse(elf)?;
    let section = elf
        .section_by_name(".modinfo")
        .context("no module information")?;
    Ok(depends_in(section.data()?))
}

fn depends_in(information: &[u8]) -> Vec<String> {
    information
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix("depends="))
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect()
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn find(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let listing =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in listing {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            find(&path, files)?;
        } else if let Some(file) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, _)) = file.split_once(".ko")
        {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

/// A module's ELF, decompressed where the distribution compresses it.
fn read(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let output = Command::new(program)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("`{program}` is needed for {}", path.display()))?;
    if !output.status.success() {
        bail!("`{program} -dc {}` failed", path.display());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_read_from_its_information() {
        for (information, expected) in [
            (
                &b"license=GPL\0depends=nvme-core,t10-pi\0name=nvme\0"[..],
                &["nvme_core", "t10_pi"][..],
            ),
            (b"depends=\0", &[]),
            (b"", &[]),
        ] {
            assert_eq!(depends_in(information), expected);
        }
    }
}
