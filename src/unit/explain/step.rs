//! What an explanation tells step by step.

use crate::arch::address::Hpa;
use crate::arch::id::Pasid;
use core::fmt;

/// One entry that the walk has read, as it lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The root entry, of either mode (§9.1, §9.2).
    Root {
        /// Where it is.
        at: Hpa,
        /// Its quadwords, the low one first.
        quadwords: [u64; 2],
    },
    /// A legacy-mode context entry (§9.3).
    LegacyContext {
        /// Where it is.
        at: Hpa,
        /// Its quadwords, the low one first.
        quadwords: [u64; 2],
    },
    /// A scalable-mode context entry (§9.4).
    Context {
        /// Where it is.
        at: Hpa,
        /// Its quadwords, the low one first.
        quadwords: [u64; 4],
    },
    /// A PASID-directory entry (§9.5).
    Directory {
        /// The PASID.
        pasid: Pasid,
        /// Where it is.
        at: Hpa,
        /// The entry.
        entry: u64,
    },
    /// A PASID-table entry (§9.6).
    Entry {
        /// The PASID.
        pasid: Pasid,
        /// Where it is.
        at: Hpa,
        /// Its quadwords, the low one first.
        quadwords: [u64; 8],
    },
    /// A first-stage paging entry (§9.7).
    FirstStage {
        /// The level, from 1 up.
        level: u8,
        /// Where it is; of a nested table, where the second stage led.
        at: Hpa,
        /// The entry.
        entry: u64,
    },
    /// A second-stage paging entry (§9.8).
    SecondStage {
        /// The level, from 1 up.
        level: u8,
        /// The address that is being translated.
        input: u64,
        /// Where the entry is.
        at: Hpa,
        /// The entry.
        entry: u64,
    },
}

impl fmt::Display for Step {
    /// One line: what was read, where, and its value, the high quadword first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn line(f: &mut fmt::Formatter<'_>, name: &str, at: Hpa, quadwords: &[u64]) -> fmt::Result {
            write!(f, "{name} at {at}:")?;
            for quadword in quadwords.iter().rev() {
                write!(f, " {quadword:016x}")?;
            }
            Ok(())
        }
        match self {
            Self::Root { at, quadwords } => line(f, "root entry", *at, quadwords),
            Self::LegacyContext { at, quadwords } => {
                line(f, "legacy context entry", *at, quadwords)
            }
            Self::Context { at, quadwords } => line(f, "context entry", *at, quadwords),
            Self::Directory { pasid, at, entry } => {
                write!(f, "PASID {pasid} ")?;
                line(f, "directory entry", *at, &[*entry])
            }
            Self::Entry {
                pasid,
                at,
                quadwords,
            } => {
                write!(f, "PASID {pasid} ")?;
                line(f, "entry", *at, quadwords)
            }
            Self::FirstStage { level, at, entry } => {
                write!(f, "level {level} ")?;
                line(f, "first-stage entry", *at, &[*entry])
            }
            Self::SecondStage {
                level,
                input,
                at,
                entry,
            } => {
                write!(f, "level {level} ")?;
                line(f, "second-stage entry", *at, &[*entry])?;
                write!(f, " for {input:#x}")
            }
        }
    }
}
