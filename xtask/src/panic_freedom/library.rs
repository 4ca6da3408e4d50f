//! The library's sources as a tree of modules, and the public path of each item.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use proc_macro2::{TokenStream, TokenTree};
use syn::{Attribute, Item, Meta, UseTree, Visibility};

/// The library's crate name.
pub(super) const CRATE: &str = "vtd_nest";

/// A module's path from the root, without the crate: `["arch", "dmar"]`.
pub(super) type ModulePath = Vec<String>;

/// One `use`, flattened: a name and what it stands for.
#[derive(Debug)]
struct Import {
    public: bool,
    /// `None` for a glob.
    name: Option<String>,
    target: Vec<String>,
}

/// One module: what it contains, in order.
#[derive(Debug, Default)]
pub(super) struct Module {
    /// Its items, without those that this build leaves out.
    pub(super) items: Vec<Item>,
    imports: Vec<Import>,
    /// Names of types that its item-position macros may define.
    macro_types: BTreeSet<String>,
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A module of the library.
    Module(ModulePath),
    /// An item of the library: its module and its name.
    Item(ModulePath, String),
    /// Something of another crate, by its full path.
    External(Vec<String>),
    /// A name that no item or import explains: from the prelude, or a primitive type.
    Prelude,
}

/// The whole library.
#[derive(Debug)]
pub(super) struct Library {
    modules: BTreeMap<ModulePath, Module>,
    public: BTreeMap<(ModulePath, String), String>,
}

/// Whether the item with these attributes is part of the build for the bare target, without
/// features and without tests.
pub(super) fn is_compiled(attributes: &[Attribute]) -> bool {
    attributes.iter().all(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            list.parse_args::<Meta>().is_ok_and(|meta| holds(&meta))
        }
        _ => true,
    })
}

fn holds(condition: &Meta) -> bool {
    use syn::punctuated::Punctuated;
    match condition {
        Meta::Path(_) => false, // `test`, `debug_assertions`, `unix`, …
        Meta::NameValue(pair) => {
            let value = quote::quote!(#pair).to_string().replace(' ', "");
            [
                "target_arch=\"x86_64\"",
                "target_os=\"none\"",
                "target_pointer_width=\"64\"",
                "target_endian=\"little\"",
                "target_has_atomic=\"64\"",
                "target_has_atomic=\"ptr\"",
                "panic=\"abort\"",
            ]
            .contains(&value.as_str())
        }
        Meta::List(list) => {
            let parser = Punctuated::<Meta, syn::Token![,]>::parse_terminated;
            let Ok(parts) = list.parse_args_with(parser) else {
                return false;
            };
            if list.path.is_ident("not") {
                !parts.iter().any(holds)
            } else if list.path.is_ident("any") {
                parts.iter().any(holds)
            } else {
                parts.iter().all(holds)
            }
        }
    }
}

/// The attributes of an item.
fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The name that an item defines and whether it is `pub`.
fn definition(item: &Item) -> Option<(String, bool)> {
    let (name, visibility) = match item {
        Item::Const(item) => (&item.ident, &item.vis),
        Item::Enum(item) => (&item.ident, &item.vis),
        Item::Fn(item) => (&item.sig.ident, &item.vis),
        Item::Static(item) => (&item.ident, &item.vis),
        Item::Struct(item) => (&item.ident, &item.vis),
        Item::Trait(item) => (&item.ident, &item.vis),
        Item::Type(item) => (&item.ident, &item.vis),
        Item::Union(item) => (&item.ident, &item.vis),
        _ => return None,
    };
    Some((name.to_string(), is_public(visibility)))
}

/// Whether a visibility is plain `pub`.
pub(super) fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn flatten(tree: &UseTree, before: &mut Vec<String>, public: bool, imports: &mut Vec<Import>) {
    let import = |name: Option<String>, target: Vec<String>| Import {
        public,
        name,
        target,
    };
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, public, imports);
            before.pop();
        }
        UseTree::Name(name) if name.ident == "self" => {
            imports.push(import(before.last().cloned(), before.clone()));
        }
        UseTree::Name(name) => {
            let mut target = before.clone();
            target.push(name.ident.to_string());
            imports.push(import(Some(name.ident.to_string()), target));
        }
        UseTree::Rename(rename) => {
            let mut target = before.clone();
            if rename.ident != "self" {
                target.push(rename.ident.to_string());
            }
            imports.push(import(Some(rename.rename.to_string()), target));
        }
        UseTree::Glob(_) => imports.push(import(None, before.clone())),
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, before, public, imports);
            }
        }
    }
}

impl Library {
    /// Reads the library whose root file is `root`.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let folder = root.parent().context("the root file has no folder")?;
        let mut modules = BTreeMap::new();
        let text = read(root)?;
        collect(&text, root, folder, Vec::new(), &mut modules)?;
        Ok(Self::over(modules))
    }

    /// The library whose only file has this text.
    #[cfg(test)]
    pub(super) fn of(text: &str) -> Result<Self> {
        let mut modules = BTreeMap::new();
        collect(
            text,
            Path::new("lib.rs"),
            Path::new("."),
            Vec::new(),
            &mut modules,
        )?;
        Ok(Self::over(modules))
    }

    fn over(modules: BTreeMap<ModulePath, Module>) -> Self {
        let mut library = Self {
            modules,
            public: BTreeMap::new(),
        };
        library.publish();
        library
    }

    /// Finds the shortest public path of each item.
    fn publish(&mut self) {
        let mut public = BTreeMap::new();
        let mut queue = VecDeque::from([(ModulePath::new(), CRATE.to_owned())]);
        let mut seen = HashSet::new();
        while let Some((path, shown)) = queue.pop_front() {
            if !seen.insert((path.clone(), shown.clone())) || shown.matches("::").count() > 8 {
                continue;
            }
            let Some(module) = self.modules.get(&path) else {
                continue;
            };
            for item in &module.items {
                if let Some((name, true)) = definition(item) {
                    let full = format!("{shown}::{name}");
                    public.entry((path.clone(), name)).or_insert(full);
                }
                if let Item::Mod(inner) = item
                    && is_public(&inner.vis)
                {
                    let name = inner.ident.to_string();
                    let mut path = path.clone();
                    path.push(name.clone());
                    queue.push_back((path, format!("{shown}::{name}")));
                }
            }
            for import in module.imports.iter().filter(|import| import.public) {
                match (&import.name, self.resolve(&path, &import.target)) {
                    (Some(name), Target::Module(target)) => {
                        queue.push_back((target, format!("{shown}::{name}")));
                    }
                    (None, Target::Module(target)) => queue.push_back((target, shown.clone())),
                    (Some(name), Target::Item(module, item)) => {
                        let full = format!("{shown}::{name}");
                        public.entry((module, item)).or_insert(full);
                    }
                    _ => {}
                }
            }
        }
        self.public = public;
    }

    /// The modules at or below `path`.
    pub(super) fn below<'a>(
        &'a self,
        path: &'a [String],
    ) -> impl Iterator<Item = (&'a ModulePath, &'a Module)> {
        self.modules
            .iter()
            .filter(move |(other, _)| other.starts_with(path))
    }

    /// The path by which another crate names an item, if it can.
    pub(super) fn public_path(&self, module: &[String], name: &str) -> Option<&str> {
        self.public
            .get(&(module.to_vec(), name.to_owned()))
            .map(String::as_str)
    }

    /// The definition of an item and whether it says `pub`.
    pub(super) fn item(&self, module: &[String], name: &str) -> Option<(&Item, bool)> {
        self.modules.get(module)?.items.iter().find_map(|item| {
            let (defined, public) = definition(item)?;
            (defined == name).then_some((item, public))
        })
    }

    /// What `path`, written in `module`, leads to.
    pub(super) fn resolve(&self, module: &[String], path: &[String]) -> Target {
        self.resolve_within(module, path, 16)
    }

    fn resolve_within(&self, module: &[String], path: &[String], depth: u32) -> Target {
        let Some((first, rest)) = path.split_first() else {
            return Target::Module(module.to_vec());
        };
        let Some(depth) = depth.checked_sub(1) else {
            return Target::Prelude;
        };
        match first.as_str() {
            "crate" => return self.descend(Vec::new(), rest, depth),
            "self" => return self.descend(module.to_vec(), rest, depth),
            "super" => {
                let parent = module.split_last().map_or(&[][..], |(_, parent)| parent);
                return self.resolve_within(parent, rest, depth);
            }
            _ => {}
        }
        match self.name(module, first, depth) {
            Some(Target::Module(inner)) => self.descend(inner, rest, depth),
            Some(Target::External(mut outer)) => {
                outer.extend(rest.iter().cloned());
                Target::External(outer)
            }
            Some(found) => found,
            None if rest.is_empty() => Target::Prelude,
            None => Target::External(path.to_vec()),
        }
    }

    fn descend(&self, module: ModulePath, path: &[String], depth: u32) -> Target {
        let Some((first, rest)) = path.split_first() else {
            return Target::Module(module);
        };
        match self.name(&module, first, depth) {
            Some(Target::Module(inner)) => self.descend(inner, rest, depth),
            Some(Target::External(mut outer)) => {
                outer.extend(rest.iter().cloned());
                Target::External(outer)
            }
            Some(found) => found,
            // A macro defines it: what is imported by name exists.
            None => {
                let mut outer = in_crate(&module, first);
                outer.extend(rest.iter().cloned());
                Target::External(outer)
            }
        }
    }

    /// What one name stands for in `module`.
    fn name(&self, module: &[String], name: &str, depth: u32) -> Option<Target> {
        let depth = depth.checked_sub(1)?;
        let content = self.modules.get(module)?;
        let mut inner = module.to_vec();
        inner.push(name.to_owned());
        if self.modules.contains_key(&inner) {
            return Some(Target::Module(inner));
        }
        if self.item(module, name).is_some() {
            return Some(Target::Item(module.to_vec(), name.to_owned()));
        }
        let known = |target: Target| (target != Target::Prelude).then_some(target);
        let named = content
            .imports
            .iter()
            .filter(|import| import.name.as_deref() == Some(name));
        for import in named {
            // `use x::x;` must not find itself.
            if import.target.first().map(String::as_str) == Some(name) {
                return Some(Target::External(import.target.clone()));
            }
            if let Some(target) = known(self.resolve_within(module, &import.target, depth)) {
                return Some(target);
            }
        }
        let globs = content
            .imports
            .iter()
            .filter(|import| import.name.is_none());
        for import in globs {
            if let Target::Module(target) = self.resolve_within(module, &import.target, depth)
                && target != module
                && let Some(found) = self.name(&target, name, depth)
            {
                return Some(found);
            }
        }
        content
            .macro_types
            .contains(name)
            .then(|| Target::External(in_crate(module, name)))
    }
}

/// The path of an item of the library as another crate writes it, if its module is public.
fn in_crate(module: &[String], name: &str) -> Vec<String> {
    std::iter::once(CRATE)
        .chain(module.iter().map(String::as_str))
        .chain([name])
        .map(str::to_owned)
        .collect()
}

/// Adds the names that a macro's tokens may define types by: those that look like a type and are
/// not of the prelude.
fn collect_types(tokens: TokenStream, types: &mut BTreeSet<String>) {
    const PRELUDE: [&str; 24] = [
        "Self",
        "Option",
        "Some",
        "None",
        "Result",
        "Ok",
        "Err",
        "Default",
        "Clone",
        "Copy",
        "Debug",
        "PartialEq",
        "Eq",
        "PartialOrd",
        "Ord",
        "Hash",
        "From",
        "Into",
        "TryFrom",
        "TryInto",
        "Drop",
        "Iterator",
        "Fn",
        "FnMut",
    ];
    for token in tokens {
        match token {
            TokenTree::Group(group) => collect_types(group.stream(), types),
            TokenTree::Ident(name) => {
                let name = name.to_string();
                if name.starts_with(char::is_uppercase) && !PRELUDE.contains(&name.as_str()) {
                    types.insert(name);
                }
            }
            _ => {}
        }
    }
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Adds the module with this text, and the modules that it declares.
fn collect(
    text: &str,
    file: &Path,
    folder: &Path,
    path: ModulePath,
    modules: &mut BTreeMap<ModulePath, Module>,
) -> Result<()> {
    let parsed =
        syn::parse_file(text).with_context(|| format!("cannot parse {}", file.display()))?;
    add(parsed.items, folder, path, modules)
}

fn add(
    items: Vec<Item>,
    folder: &Path,
    path: ModulePath,
    modules: &mut BTreeMap<ModulePath, Module>,
) -> Result<()> {
    let mut module = Module::default();
    for mut item in items {
        if !is_compiled(attributes(&item)) {
            continue;
        }
        if let Item::Use(import) = &item {
            let public = is_public(&import.vis);
            flatten(&import.tree, &mut Vec::new(), public, &mut module.imports);
        }
        // The name may stand in the invocation or in the macro's own definition.
        if let Item::Macro(invocation) = &item {
            collect_types(invocation.mac.tokens.clone(), &mut module.macro_types);
        }
        if let Item::Mod(inner) = &mut item {
            let name = inner.ident.to_string();
            let mut path = path.clone();
            path.push(name.clone());
            let folder = folder.join(&name);
            match inner.content.take() {
                Some((_, items)) => add(items, &folder, path, modules)?,
                None => {
                    let candidates = [folder.with_extension("rs"), folder.join("mod.rs")];
                    let Some(file) = candidates.iter().find(|file| file.is_file()) else {
                        bail!("module `{}` has no file", path.join("::"));
                    };
                    collect(&read(file)?, file, &folder, path, modules)?;
                }
            }
        }
        module.items.push(item);
    }
    modules.insert(path, module);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<String> {
        text.split("::").map(str::to_owned).collect()
    }

    #[test]
    fn public_paths_follow_modules_and_re_exports() {
        let library = Library::of(
            "pub mod open { pub struct A; struct B; }
             mod closed { pub struct C; pub struct D; pub mod deep { pub struct E; } }
             pub use closed::C as Renamed;
             pub mod through { pub use super::closed::deep::*; }",
        )
        .unwrap();
        for (module, name, expected) in [
            ("open", "A", Some("vtd_nest::open::A")),
            ("open", "B", None),
            ("closed", "C", Some("vtd_nest::Renamed")),
            ("closed", "D", None),
            ("closed::deep", "E", Some("vtd_nest::through::E")),
        ] {
            assert_eq!(library.public_path(&path(module), name), expected, "{name}");
        }
    }

    #[test]
    fn names_resolve_through_imports() {
        let library = Library::of(
            "pub mod a { pub struct S; pub trait T {} }
             pub mod b { use core::fmt; use crate::a::{self, S as Other}; use super::a::*; }",
        )
        .unwrap();
        let resolve = |text: &str| library.resolve(&path("b"), &path(text));
        let item = |name: &str| Target::Item(path("a"), name.into());
        assert_eq!(resolve("Other"), item("S"));
        assert_eq!(resolve("a::T"), item("T"));
        assert_eq!(resolve("T"), item("T"));
        assert_eq!(resolve("crate::a::S"), item("S"));
        assert_eq!(resolve("super::a::S"), item("S"));
        assert_eq!(
            resolve("fmt::Display"),
            Target::External(path("core::fmt::Display"))
        );
        assert_eq!(resolve("Default"), Target::Prelude);
    }

    #[test]
    fn types_that_a_macro_defines_are_taken_on_trust() {
        let library = Library::of(
            "pub mod a { address! { Hpa } pub struct S; }
             pub mod b { use crate::a::Hpa; use crate::a::{S, Other}; }",
        )
        .unwrap();
        for (module, name, expected) in [
            ("a", "Hpa", Target::External(path("vtd_nest::a::Hpa"))),
            ("b", "Hpa", Target::External(path("vtd_nest::a::Hpa"))),
            ("b", "Other", Target::External(path("vtd_nest::a::Other"))),
            ("b", "S", Target::Item(path("a"), "S".into())),
            ("a", "Option", Target::Prelude),
        ] {
            assert_eq!(
                library.resolve(&path(module), &path(name)),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn only_what_the_bare_target_compiles_is_read() {
        let library = Library::of(
            "#[cfg(test)] pub mod tests { pub struct A; }
             #[cfg(not(test))] pub struct B;
             #[cfg(feature = \"f\")] pub struct C;
             #[cfg(all(target_arch = \"x86_64\", not(feature = \"f\")))] pub struct D;
             #[cfg(any(test, feature = \"f\"))] pub struct E;",
        )
        .unwrap();
        let root = ModulePath::new();
        for (name, expected) in [("B", true), ("C", false), ("D", true), ("E", false)] {
            assert_eq!(
                library.public_path(&root, name).is_some(),
                expected,
                "{name}"
            );
        }
        assert_eq!(library.below(&path("tests")).count(), 0);
    }
}
