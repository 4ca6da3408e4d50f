//! The guest's files: the distribution's kernel and a static busybox, through the package manager,
//! kept in Cargo's target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{ask, check};
use crate::progress::Progress;

/// The package that depends on the distribution's current kernel.
const KERNEL_PACKAGE: &str = "linux-image-amd64";
/// The package with the guest's programs.
const PROGRAMS_PACKAGE: &str = "busybox-static";

/// An unpacked kernel and the guest's programs.
#[derive(Debug)]
pub(crate) struct Packages {
    /// The kernel's version, as in its folder's name.
    pub(crate) version: String,
    pub(crate) kernel: PathBuf,
    /// The kernel's modules.
    pub(crate) modules: PathBuf,
    /// The one program with all names.
    pub(crate) programs: PathBuf,
}

/// Unpacks both into `folder`, downloaded unless an earlier call did.
pub(crate) fn fetch(folder: &Path, progress: &Progress) -> Result<Packages> {
    let depends = ask(Command::new("apt-cache").args(["depends", KERNEL_PACKAGE]));
    let package = depends.as_deref().and_then(kernel_of);
    let unpacked = folder.join("unpacked");
    let found = find(&unpacked);
    // What is there serves, unless the distribution has a newer kernel by now.
    let is_current =
        |found: &Packages| package.is_none_or(|package| package.ends_with(&found.version));
    if let Some(found) = found.filter(is_current) {
        return Ok(found);
    }
    let Some(package) = package else {
        bail!(
            "no kernel: the package manager knows no {KERNEL_PACKAGE}; type `apt-get update` as \
             root, or give `--kernel FILE --initrd FILE`"
        );
    };
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    let downloads = folder.join("packages");
    fs::create_dir_all(&downloads)?;
    progress.at(&format!("downloading {package} and {PROGRAMS_PACKAGE}"));
    let mut download = Command::new("apt-get");
    download
        .args(["download", "--quiet", package, PROGRAMS_PACKAGE])
        .current_dir(&downloads);
    check(&mut download, progress).context("the guest's packages cannot be downloaded")?;
    for entry in fs::read_dir(&downloads)? {
        let path = entry?.path();
        progress.at(&format!("unpacking {}", path.display()));
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(&path).arg(&unpacked);
        check(&mut unpack, progress)?;
        fs::remove_file(path)?;
    }
    find(&unpacked).context("the packages do not hold a kernel and busybox")
}

/// The kernel's own package in the output of `apt-cache depends`.
fn kernel_of(depends: &str) -> Option<&str> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
}

fn find(unpacked: &Path) -> Option<Packages> {
    let boot = fs::read_dir(unpacked.join("boot")).ok()?;
    let kernel = boot
        .flatten()
        .map(|entry| entry.path())
        .find(|path| version_of(path).is_some())?;
    let version = version_of(&kernel)?.to_owned();
    let modules = ["usr/lib/modules", "lib/modules"]
        .map(|folder| unpacked.join(folder).join(&version))
        .into_iter()
        .find(|folder| folder.is_dir())?;
    let programs = ["usr/bin/busybox", "bin/busybox"]
        .map(|path| unpacked.join(path))
        .into_iter()
        .find(|path| path.is_file())?;
    Some(Packages {
        version,
        kernel,
        modules,
        programs,
    })
}

fn version_of(kernel: &Path) -> Option<&str> {
    kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_the_first_dependency_of_that_name() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-1-amd64\n  Conflicts: x\n";
        assert_eq!(kernel_of(text), Some("linux-image-6.1.0-1-amd64"));
        assert_eq!(kernel_of("linux-image-amd64\n"), None);
    }
}
