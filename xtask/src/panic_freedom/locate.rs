//! Which functions reach the panic handler: what a person needs when the ELF does not link.
//!
//! The ELF is linked once more with the missing symbol left open, and its calls are read backwards
//! from the panic handler. Only direct calls are seen, which is what panics are.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// The library's functions that lead to the panic handler, each with what it calls; and what leads
/// there without a direct caller.
pub(super) fn functions_that_panic(elf: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(elf).context("cannot read the ELF")?;
    let text = file.section_by_name(".text").context("no .text")?;
    let code = text.data()?;
    let mut functions: BTreeMap<u64, String> = BTreeMap::new();
    for symbol in file.symbols() {
        if symbol.kind() == SymbolKind::Text && symbol.is_definition() {
            let name = rustc_demangle::demangle(symbol.name().unwrap_or_default());
            functions.insert(symbol.address(), format!("{name:#}"));
        }
    }
    // (called function, calling function)
    let mut callers: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for (offset, window) in code.windows(5).enumerate() {
        let [opcode @ (0xe8 | 0xe9), a, b, c, d] = *window else {
            continue;
        };
        let _ = opcode;
        let here = text.address() + offset as u64;
        let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
        let there = here.wrapping_add(5).wrapping_add_signed(distance);
        if functions.contains_key(&there)
            && let Some((caller, _)) = functions.range(..=here).next_back()
            && *caller != there
        {
            callers.entry(there).or_default().insert(*caller);
        }
    }
    let mut reached: Vec<u64> = functions
        .iter()
        .filter(|(_, name)| name.contains("rust_begin_unwind"))
        .map(|(address, _)| *address)
        .collect();
    let mut seen: BTreeSet<u64> = reached.iter().copied().collect();
    let mut found = BTreeSet::new();
    while let Some(callee) = reached.pop() {
        let Some(called) = functions.get(&callee) else {
            continue;
        };
        let Some(callers) = callers.get(&callee) else {
            found.insert(format!(
                "{called}, which something reaches through a pointer"
            ));
            continue;
        };
        for &caller in callers {
            let Some(name) = functions.get(&caller) else {
                continue;
            };
            if name.contains(super::library::CRATE) || name.contains("planted") {
                found.insert(format!("{name}, through {called}"));
            } else if seen.insert(caller) {
                reached.push(caller);
            }
        }
    }
    Ok(found.into_iter().collect())
}
