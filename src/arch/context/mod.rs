//! Context-table entries of legacy and scalable mode (§9.3, §9.4).

mod legacy;
mod scalable;
#[cfg(test)]
mod tests;

use super::quadwords::bits;

pub use legacy::{LegacyContext, LegacyContextEntry, LegacyContextFault, LegacyTranslation};
pub use scalable::{
    ContextAttributes, DirectoryOrder, IllegalCombination, ScalableContext, ScalableContextEntry,
    ScalableContextFault,
};

const PRESENT: u64 = 1;
const POINTER: u64 = bits(63, 12);
