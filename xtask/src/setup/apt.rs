//! Debian's package sources: which mirror a machine uses, and its backports entry.
//!
//! Both formats are read: one line per source (`*.list`) and stanzas (`*.sources`). The backports
//! entry is a copy of the entry for the release itself with another suite, so the mirror, its keys
//! and its options are those that the machine trusts already.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A package source to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// The content of its file.
    pub(crate) text: String,
    /// Whether that is a stanza rather than a line.
    pub(crate) deb822: bool,
}

impl Source {
    /// The file that it belongs in.
    pub(crate) fn path(&self) -> PathBuf {
        let extension = if self.deb822 { "sources" } else { "list" };
        Path::new("/etc/apt/sources.list.d/vtd-nest-backports").with_extension(extension)
    }
}

/// What a machine needs to install from the backports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backports {
    /// Nothing: they are among its sources.
    Present,
    /// This source.
    Add(Source),
    /// A mirror: none of its sources serves the release.
    NoMirror,
}

/// One package source as read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// The same source with the backports' suite and component `main`.
    backports: Source,
}

impl Entry {
    fn serves(&self, suite: &str) -> bool {
        self.suites.iter().any(|name| name == suite)
            && self.components.iter().any(|name| name == "main")
    }

    /// Whether the address looks like Debian's archive: others also name suites `bookworm`.
    fn is_archive(&self) -> bool {
        self.uris.iter().any(|uri| {
            let path = uri.trim_end_matches('/');
            path.ends_with("/debian")
                || path.contains("/archive/debian/")
                || path.ends_with("/debian.list")
        })
    }
}

/// What the machine whose configuration lies in `folder` needs for the backports of `release`.
pub(crate) fn backports(folder: &Path, release: &str) -> Result<Backports> {
    let mut files = vec![folder.join("sources.list")];
    if let Ok(listing) = fs::read_dir(folder.join("sources.list.d")) {
        files.extend(listing.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut entries = Vec::new();
    for file in files {
        let extension = file.extension().and_then(|extension| extension.to_str());
        let parse = match extension {
            Some("list") => parse_lines,
            Some("sources") => parse_stanzas,
            _ => continue,
        };
        if !file.is_file() {
            continue;
        }
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        entries.extend(parse(&text, release));
    }
    Ok(choose(&entries, release))
}

fn choose(entries: &[Entry], release: &str) -> Backports {
    let backports = format!("{release}-backports");
    if entries.iter().any(|entry| entry.serves(&backports)) {
        return Backports::Present;
    }
    let serving = || entries.iter().filter(|entry| entry.serves(release));
    serving()
        .find(|entry| entry.is_archive())
        .or_else(|| serving().next())
        .map_or(Backports::NoMirror, |entry| {
            Backports::Add(entry.backports.clone())
        })
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Entries of the form `deb [options] uri suite component…`.
fn parse_lines(text: &str, release: &str) -> Vec<Entry> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next()?.trim();
            let rest = line.strip_prefix("deb")?;
            if !rest.starts_with([' ', '\t']) {
                return None; // `deb-src`
            }
            let rest = rest.trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(inner) => {
                    let (options, rest) = inner.split_once(']')?;
                    (format!("[{options}] "), rest)
                }
                None => (String::new(), rest),
            };
            let mut fields = rest.split_whitespace().map(str::to_owned);
            let uri = fields.next()?;
            let suite = fields.next()?;
            Some(Entry {
                backports: Source {
                    text: format!("deb {options}{uri} {release}-backports main\n"),
                    deb822: false,
                },
                uris: vec![uri],
                suites: vec![suite],
                components: fields.collect(),
            })
        })
        .collect()
}

/// Entries as stanzas of `Field: value`, where indented lines continue a value.
fn parse_stanzas(text: &str, release: &str) -> Vec<Entry> {
    let mut stanzas: Vec<Vec<(String, String)>> = vec![Vec::new()];
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            stanzas.push(Vec::new());
            continue;
        }
        let Some(stanza) = stanzas.last_mut() else {
            continue;
        };
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push('\n');
                value.push_str(line.trim_end());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            stanza.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    stanzas
        .iter()
        .filter_map(|stanza| {
            let field = |wanted: &str| {
                stanza
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                    .map(|(_, value)| value.as_str())
            };
            let disabled = field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
            if disabled || !words(field("Types")?).iter().any(|kind| kind == "deb") {
                return None;
            }
            let mut copy = String::new();
            for (name, value) in stanza {
                let value = match name.to_ascii_lowercase().as_str() {
                    "types" => "deb",
                    "suites" => &format!("{release}-backports"),
                    "components" => "main",
                    _ => value,
                };
                copy.push_str(&format!("{name}: {value}\n"));
            }
            Some(Entry {
                uris: words(field("URIs")?),
                suites: words(field("Suites")?),
                components: words(field("Components").unwrap_or_default()),
                backports: Source {
                    text: copy,
                    deb822: true,
                },
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(text: &str, deb822: bool) -> Backports {
        Backports::Add(Source {
            text: text.into(),
            deb822,
        })
    }

    #[test]
    fn stanzas_of_a_stock_installation_give_their_own_mirror() {
        let text = "\
Types: deb
# a remark
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
";
        let entries = parse_stanzas(text, "bookworm");
        assert_eq!(entries.len(), 2);
        let expected = "\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";
        assert_eq!(choose(&entries, "bookworm"), add(expected, true));
    }

    #[test]
    fn stanzas_that_are_disabled_or_sources_only_do_not_count() {
        for text in [
            "Enabled: no\nTypes: deb\nURIs: x:/debian\nSuites: bookworm\nComponents: main\n",
            "Types: deb-src\nURIs: x:/debian\nSuites: bookworm\nComponents: main\n",
            "Types: deb\nURIs: x:/debian\nSuites: trixie\nComponents: main\n",
            "Types: deb\nURIs: x:/debian\nSuites: bookworm\nComponents: contrib\n",
            "Types: deb\nSuites: bookworm\n",
            "",
        ] {
            let chosen = choose(&parse_stanzas(text, "bookworm"), "bookworm");
            assert_eq!(chosen, Backports::NoMirror, "{text}");
        }
    }

    #[test]
    fn an_embedded_key_is_copied_whole() {
        let text = "types: deb deb-src\nuris: x:/debian\nsuites: bookworm\ncomponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n -----END\n";
        let expected = "types: deb\nuris: x:/debian\nsuites: bookworm-backports\ncomponents: main\nSigned-By: \n -----BEGIN\n .\n abc\n -----END\n";
        let chosen = choose(&parse_stanzas(text, "bookworm"), "bookworm");
        assert_eq!(chosen, add(expected, true));
    }

    #[test]
    fn lines_keep_their_options_and_address() {
        for (line, expected) in [
            (
                "deb http://m.example/debian/ bookworm main contrib # remark",
                Some("deb http://m.example/debian/ bookworm-backports main\n"),
            ),
            (
                "deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian bookworm main",
                Some(
                    "deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian bookworm-backports main\n",
                ),
            ),
            ("deb-src http://m.example/debian bookworm main", None),
            ("# deb http://m.example/debian bookworm main", None),
            ("deb http://m.example/debian bookworm-updates main", None),
            ("deb", None),
        ] {
            let chosen = choose(&parse_lines(line, "bookworm"), "bookworm");
            let expected = expected.map_or(Backports::NoMirror, |text| add(text, false));
            assert_eq!(chosen, expected, "{line}");
        }
    }

    #[test]
    fn debians_archive_is_preferred_to_others_with_that_suite() {
        let text =
            "deb http://vendor.example bookworm main\ndeb http://m.example/debian bookworm main\n";
        let chosen = choose(&parse_lines(text, "bookworm"), "bookworm");
        assert_eq!(
            chosen,
            add(
                "deb http://m.example/debian bookworm-backports main\n",
                false
            )
        );
    }

    #[test]
    fn backports_that_are_there_are_not_added() {
        let text = "deb http://m.example/debian bookworm main\ndeb http://m.example/debian bookworm-backports main\n";
        assert_eq!(
            choose(&parse_lines(text, "bookworm"), "bookworm"),
            Backports::Present
        );
    }
}
