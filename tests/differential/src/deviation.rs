//! Where QEMU's unit is known to differ from the architecture: everything else that differs is a
//! failure.
//!
//! Each deviation says as narrowly as can be when it applies. One that a full run never meets is
//! reported: it is not needed, or programs no longer get there.

use crate::layout::{DATA_PAGES, INTERRUPT_RANGE, content};
use crate::observe::{Context, Difference, OVERFLOW, PageContext, Seen};
use crate::program::{Flaw, Kind, Mode, Place};
use crate::tables::{FIRST_ACCESSED, FIRST_DIRTY};

/// Rights in second-stage entries, and in first-stage ones.
const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;

/// IQEI of a type that the unit does not have, or the mode.
const TYPE_NOT_VALID: u32 = 3;

/// IQEI of a reserved bit or value.
const RESERVED_FIELD: u32 = 4;

/// ECAP.MHMV of QEMU's unit.
const MAXIMUM_HANDLE_MASK: u64 = 15;

/// A known difference.
pub struct Deviation {
    /// Its name, for the report.
    pub name: &'static str,
    /// What QEMU does, and what the architecture says.
    pub what: &'static str,
    /// What it explains.
    pub(crate) explains: Explains,
}

/// Which differences a deviation explains.
pub(crate) enum Explains {
    /// In scalable mode, the first reason in the model's record and the second in QEMU's.
    Reason(u8, u8),
    /// Those that this is true of.
    If(fn(&Difference) -> bool),
}

impl Deviation {
    /// Whether it explains a difference.
    pub(crate) fn explains(&self, difference: &Difference) -> bool {
        match (&self.explains, difference) {
            (Explains::If(explains), _) => explains(difference),
            (
                Explains::Reason(from_model, from_qemu),
                Difference::Reason {
                    context,
                    model,
                    qemu,
                },
            ) => context.mode == Mode::Scalable && (model, qemu) == (from_model, from_qemu),
            (Explains::Reason(..), _) => false,
        }
    }
}

/// The number in [`ALL`] of the deviation that explains a difference.
pub(crate) fn of(difference: &Difference) -> Option<usize> {
    ALL.iter()
        .position(|deviation| deviation.explains(difference))
}

/// Whether the two reasons mean the same, or are a known difference.
fn is_same_reason(context: &Context, from_model: u8, from_qemu: u8) -> bool {
    let difference = || Difference::Reason {
        context: context.clone(),
        model: from_model,
        qemu: from_qemu,
    };
    from_model == from_qemu || of(&difference()).is_some()
}

/// All of them; the first that explains a difference counts.
pub const ALL: &[Deviation] = &[
    Deviation {
        name: "fault-reason-39-as-01",
        what: "an absent root entry has the legacy number in scalable mode",
        explains: Explains::Reason(0x39, 0x01),
    },
    Deviation {
        name: "fault-reason-38-as-08",
        what: "an unreadable root table has the legacy number in scalable mode",
        explains: Explains::Reason(0x38, 0x08),
    },
    Deviation {
        name: "fault-reason-3a-as-0a",
        what: "a reserved bit in a root entry has the legacy number in scalable mode",
        explains: Explains::Reason(0x3a, 0x0a),
    },
    Deviation {
        name: "fault-reason-41-as-02",
        what: "an absent context entry has the legacy number in scalable mode",
        explains: Explains::Reason(0x41, 0x02),
    },
    Deviation {
        name: "fault-reason-40-as-09",
        what: "an unreadable context table has the legacy number in scalable mode",
        explains: Explains::Reason(0x40, 0x09),
    },
    Deviation {
        name: "fault-reason-42-as-0b",
        what: "a reserved bit in a context entry has the legacy number in scalable mode",
        explains: Explains::Reason(0x42, 0x0b),
    },
    Deviation {
        name: "fault-reason-84-as-04",
        what: "an address beyond second-stage tables has the legacy number in scalable mode",
        explains: Explains::Reason(0x84, 0x04),
    },
    Deviation {
        name: "fault-reason-7b-as-03",
        what: "an unreadable second-stage root has the legacy number in scalable mode",
        explains: Explains::Reason(0x7b, 0x03),
    },
    Deviation {
        name: "fault-reason-78-as-07",
        what: "an unreadable second-stage table has the legacy number in scalable mode",
        explains: Explains::Reason(0x78, 0x07),
    },
    Deviation {
        name: "fault-reason-79-as-05",
        what: "a write by an absent second-stage entry has the legacy number in scalable mode",
        explains: Explains::Reason(0x79, 0x05),
    },
    Deviation {
        name: "fault-reason-79-as-06",
        what: "a read by an absent second-stage entry has the legacy number in scalable mode",
        explains: Explains::Reason(0x79, 0x06),
    },
    Deviation {
        name: "fault-reason-85-as-05",
        what: "a write without the right has the legacy number for second-stage tables",
        explains: Explains::Reason(0x85, 0x05),
    },
    Deviation {
        name: "fault-reason-86-as-06",
        what: "a read without the right has the legacy number for second-stage tables",
        explains: Explains::Reason(0x86, 0x06),
    },
    Deviation {
        name: "fault-reason-7a-as-0c",
        what: "a reserved bit in a second-stage entry has the legacy number in scalable mode",
        explains: Explains::Reason(0x7a, 0x0c),
    },
    Deviation {
        name: "fault-reason-59-as-5b",
        what: "P of a PASID-table entry is looked at after the translation type",
        explains: Explains::Reason(0x59, 0x5b),
    },
    Deviation {
        name: "fault-reason-0e-as-87",
        what: "in legacy mode of a scalable unit, a page in the interrupt range has the number of \
               scalable mode",
        explains: Explains::If(|difference| match difference {
            Difference::Reason {
                context,
                model: 0x0e,
                qemu: 0x87,
            } => context.mode == Mode::Legacy,
            _ => false,
        }),
    },
    Deviation {
        name: "fault-disable-not-honoured-for-reserved",
        what: "FPD of a context entry does not silence the fault of its own reserved bits (0b, 42)",
        explains: Explains::If(|difference| match difference {
            Difference::Reserved {
                place: Place::Context,
                context,
                model,
                qemu,
                ..
            } => {
                context.fault_disable & 1 != 0
                    && is_blocked(model, &[0x0b, 0x42])
                    && model.is_silent()
                    && qemu.is_without_data()
                    && qemu.reason() == Some(0x0b)
            }
            _ => false,
        }),
    },
    Deviation {
        name: "fault-reason-5a-as-5b",
        what: "reserved bits of a PASID-table entry are not looked at, but the type is: a second \
               stage where there is none",
        explains: Explains::Reason(0x5a, 0x5b),
    },
    Deviation {
        name: "rights-before-lower-levels",
        what: "rights are looked at entry by entry, before entries further down; the architecture \
               looks at those of the whole walk",
        explains: Explains::If(|difference| match difference {
            Difference::Reason {
                context,
                model,
                qemu,
            } => {
                // A table that cannot be read is below the last entry of the way.
                let is_unreadable = matches!(model, 0x07 | 0x70 | 0x78);
                let lacks = |bit: u64| {
                    context
                        .pages
                        .iter()
                        .any(|page| page.lacks_above(bit) || is_unreadable && page.lacks(bit))
                };
                match (context.kind, qemu) {
                    (Some(Kind::First), 0x81) => {
                        lacks(USER) && matches!(model, 0x70 | 0x71 | 0x72 | 0x90)
                    }
                    (Some(Kind::First), 0x85) => {
                        let is_late = matches!(model, 0x70 | 0x71 | 0x72 | 0x81 | 0x90);
                        context.write && lacks(WRITE) && is_late
                    }
                    (Some(Kind::Second), 0x05) => {
                        context.write && lacks(WRITE) && matches!(model, 0x07 | 0x0c | 0x78 | 0x7a)
                    }
                    (Some(Kind::Second), 0x06) => {
                        !context.write && lacks(READ) && matches!(model, 0x07 | 0x0c | 0x78 | 0x7a)
                    }
                    _ => false,
                }
            }
            _ => false,
        }),
    },
    Deviation {
        name: "accessed-and-dirty-if-neither",
        what: "a write sets A and D of a first-stage leaf only if neither is set",
        explains: Explains::If(|difference| match difference {
            Difference::Entry {
                kind: Kind::First,
                is_leaf: true,
                write: true,
                before,
                model,
                qemu,
                ..
            } => {
                let both = FIRST_ACCESSED | FIRST_DIRTY;
                let is_one_set = matches!(before & both, FIRST_ACCESSED | FIRST_DIRTY);
                is_one_set && *model == before | both && qemu == before
            }
            _ => false,
        }),
    },
    Deviation {
        name: "accessed-bit-of-blocked-request",
        what: "accessed bits on the way of a request that is blocked: neither side has to set them",
        explains: Explains::If(|difference| match difference {
            Difference::Entry {
                kind: Kind::First,
                blocked,
                model,
                qemu,
                ..
            } => !blocked.is_empty() && model ^ qemu == FIRST_ACCESSED,
            _ => false,
        }),
    },
    Deviation {
        name: "accessed-and-dirty-unsnooped",
        what: "accessed and dirty bits are set though page walks are not snooped (90)",
        explains: Explains::If(|difference| match difference {
            Difference::Outcome {
                context,
                model,
                qemu,
            } => {
                let is_update = |page: usize| model.blocked.get(page) == Some(&Some(0x90));
                let is_open = |page: usize| model.blocked.get(page) == Some(&None);
                (0..context.pages.len()).any(is_update)
                    && context.is_done_by_leaves(qemu, |page| is_update(page) || is_open(page))
                    && (qemu.reason().is_none() || is_noted_by_both(context, model, qemu))
            }
            Difference::Entry {
                kind: Kind::First,
                blocked,
                model,
                qemu,
                ..
            } => {
                let set = model ^ qemu;
                blocked.contains(&0x90)
                    && set & !(FIRST_ACCESSED | FIRST_DIRTY) == 0
                    && set & qemu == set
            }
            _ => false,
        }),
    },
    Deviation {
        name: "reserved-in-directory-entry",
        what: "reserved bits of a directory entry are ignored (52)",
        explains: Explains::If(|difference| is_ignored(difference, 0x52)),
    },
    Deviation {
        name: "reserved-in-pasid-entry",
        what: "reserved bits of a PASID-table entry are ignored (5a)",
        explains: Explains::If(|difference| is_ignored(difference, 0x5a)),
    },
    Deviation {
        name: "rid-pasid-honoured",
        what: "RID_PASID is used though ECAP.RPS does not offer it (42)",
        explains: Explains::If(|difference| match difference {
            Difference::Reserved {
                place: Place::Context,
                word: 1,
                bit: 0..20,
                model,
                qemu,
                repaired,
                ..
            } => {
                // Directory or PASID table have nothing there.
                is_blocked(model, &[0x42])
                    && (qemu.is_fault(&[0x51, 0x5b]) || qemu.has_same_effect(repaired))
            }
            _ => false,
        }),
    },
    Deviation {
        name: "pointer-beyond-width",
        what: "bits above the host address width are part of the address in directory and \
               PASID-table entries (52, 5a)",
        explains: Explains::If(|difference| match difference {
            Difference::Reserved {
                place,
                bit,
                context,
                model,
                qemu,
                ..
            } => {
                let (reasons, unreadable): (&[u8], &[u8]) = match place {
                    Place::Directory => (&[0x52], &[0x58]),
                    Place::Pasid => (&[0x5a], &[0x73, 0x03]),
                    _ => return false,
                };
                *bit >= context.width && is_blocked(model, reasons) && qemu.is_fault(unreadable)
            }
            _ => false,
        }),
    },
    Deviation {
        name: "absent-feature-in-context-entry",
        what: "DTE, PASIDE, PRE and RID_PRIV are accepted in context entries of a unit without the \
               feature (42)",
        explains: Explains::If(|difference| {
            matches!(
                difference,
                Difference::Reserved {
                    place: Place::Context,
                    word: 0,
                    bit: 2..=4,
                    ..
                } | Difference::Reserved {
                    place: Place::Context,
                    word: 1,
                    bit: 20,
                    ..
                }
            ) && is_ignored(difference, 0x42)
        }),
    },
    Deviation {
        name: "snoop-bit-accepted",
        what: "SNP is accepted in second-stage leaves of a unit without snoop control (0c, 7a)",
        explains: Explains::If(|difference| {
            let is_snoop = matches!(
                difference,
                Difference::Reserved {
                    place: Place::Table(_),
                    bit: 11,
                    context: Context {
                        kind: Some(Kind::Second),
                        ..
                    },
                    ..
                }
            );
            is_snoop && (is_ignored(difference, 0x0c) || is_ignored(difference, 0x7a))
        }),
    },
    Deviation {
        name: "pass-through-pointer-checked",
        what: "SSPTPTR of a legacy context entry is checked with pass-through, which ignores it",
        explains: Explains::If(|difference| match difference {
            Difference::Reserved {
                place: Place::Context,
                word: 0,
                bit,
                context,
                model,
                qemu,
                ..
            } => {
                context.mode == Mode::Legacy
                    && context.kind == Some(Kind::PassThrough)
                    && *bit >= context.width
                    && (model.is_unblocked() || is_blocked(model, &[0x03, 0x04, 0x29]))
                    && qemu.is_fault(&[0x0b])
            }
            _ => false,
        }),
    },
    Deviation {
        name: "fault-disable-not-honoured",
        what: "FPD of a directory or PASID-table entry does not silence faults of the PASID-table \
               entry",
        explains: Explains::If(|difference| match difference {
            Difference::Outcome {
                context,
                model,
                qemu,
            } => {
                context.fault_disable & 0b110 != 0
                    && context.fault_disable & 1 == 0
                    && is_blocked(model, &[0x51, 0x59, 0x5a, 0x5b])
                    && model.is_silent()
                    && qemu.is_without_data()
                    && match qemu.reason() {
                        Some(reason) => model
                            .blocked
                            .iter()
                            .flatten()
                            .all(|blocked| is_same_reason(context, *blocked, reason)),
                        // Another fault was pending.
                        None => qemu.status == qemu.status_before | OVERFLOW,
                    }
            }
            _ => false,
        }),
    },
    Deviation {
        name: "device-tlb-descriptor-unchecked",
        what: "device-TLB descriptors are accepted on a unit without device-TLBs",
        explains: Explains::If(|difference| match difference {
            Difference::QueueError {
                descriptor: Some([q0, ..]),
                model,
                qemu,
                ..
            } => matches!(q0 & 0xf, 3 | 8) && model.information == TYPE_NOT_VALID && !qemu.error,
            _ => false,
        }),
    },
    Deviation {
        name: "pasid-iotlb-descriptor-in-legacy-mode",
        what: "PASID-based IOTLB descriptors are accepted in legacy mode",
        explains: Explains::If(|difference| match difference {
            Difference::QueueError {
                descriptor: Some([q0, ..]),
                mode: Mode::Legacy,
                wide: true,
                model,
                qemu,
            } => q0 & 0xf == 6 && model.information == TYPE_NOT_VALID && !qemu.error,
            _ => false,
        }),
    },
    Deviation {
        name: "first-stage-width-from-aw",
        what: "first-stage addresses are held against AW, which is for second-stage tables: \
               without it, most are not canonical (80)",
        explains: Explains::If(|difference| match difference {
            Difference::Outcome { context, qemu, .. } => {
                is_without_width(context)
                    && qemu.is_without_data()
                    && matches!(qemu.reason(), None | Some(0x80))
            }
            Difference::Reason { context, qemu, .. } => is_without_width(context) && *qemu == 0x80,
            // It takes no way through the tables.
            Difference::Entry {
                kind: Kind::First,
                flaw: Some(Flaw::WidthMissing),
                model,
                qemu,
                ..
            } => model & !(FIRST_ACCESSED | FIRST_DIRTY) == qemu & !(FIRST_ACCESSED | FIRST_DIRTY),
            _ => false,
        }),
    },
    Deviation {
        name: "present-cleared-alone",
        what: "a PASID-table entry with P=0 goes on translating until a context-cache invalidation \
               (59)",
        explains: Explains::If(|difference| match difference {
            Difference::PresentCleared {
                context,
                model,
                qemu,
                before,
                ..
            } => {
                // Before, cached rights may have denied it silently.
                let is_denied = context.pages.iter().any(|page| page.was_accessed)
                    && before.is_silent()
                    && qemu.is_fault(&[0x05, 0x06, 0x85]);
                is_blocked(model, &[0x59]) && (qemu.has_same_effect(before) || is_denied)
            }
            _ => false,
        }),
    },
    Deviation {
        name: "pass-through-stays",
        what: "pass-through goes on until a context-cache invalidation",
        explains: Explains::If(|difference| match difference {
            Difference::PassThroughLeft { context, qemu, .. } => is_passed_through(context, qemu),
            _ => false,
        }),
    },
    Deviation {
        name: "pasid-cache-descriptor-unchecked",
        what: "PASID-cache descriptors are accepted in every mode and whatever they contain",
        explains: Explains::If(|difference| match difference {
            Difference::QueueError {
                descriptor: Some([q0, ..]),
                model,
                qemu,
                ..
            } => q0 & 0xf == 7 && model.error && !qemu.error,
            _ => false,
        }),
    },
    Deviation {
        name: "rid-pasid-recorded",
        what: "requests without PASID are recorded with RID_PASID as theirs; PP says what the \
               request had",
        explains: Explains::If(|difference| match difference {
            Difference::RecordPasid {
                context,
                model,
                qemu,
            } => {
                context.mode == Mode::Scalable
                    && !model.has_pasid()
                    && qemu.has_pasid()
                    && qemu.pasid() == 0
            }
            _ => false,
        }),
    },
    Deviation {
        name: "fault-address-in-full",
        what: "a recorded address has bits above the largest table width, which are 0",
        explains: Explains::If(|difference| match difference {
            Difference::Record {
                context,
                model,
                qemu,
            } => {
                let cut = (1 << context.width) - 1;
                let ([model, model_rest], [qemu, qemu_rest]) = (model.rest(), qemu.rest());
                model == qemu & cut && model_rest == qemu_rest && model != qemu
            }
            _ => false,
        }),
    },
    Deviation {
        name: "interrupt-range-misused",
        what: "requests to the interrupt range that are no interrupts are not faults (29)",
        explains: Explains::If(|difference| match difference {
            Difference::Outcome {
                context,
                model,
                qemu,
            }
            | Difference::Reserved {
                context,
                model,
                qemu,
                ..
            } => {
                context.address >> 20 == INTERRUPT_RANGE >> 20
                    && is_blocked(model, &[0x29])
                    && qemu.is_silent()
            }
            _ => false,
        }),
    },
    Deviation {
        name: "pass-through-beyond-width",
        what: "pass-through has no limit: addresses beyond the host address width are no faults \
               (04, 83)",
        explains: Explains::If(|difference| match difference {
            Difference::Outcome {
                context,
                model,
                qemu,
            } => {
                context.translating
                    && context.kind == Some(Kind::PassThrough)
                    && context.address >> context.width != 0
                    && is_blocked(model, &[0x04, 0x83])
                    && qemu.is_silent()
            }
            _ => false,
        }),
    },
    Deviation {
        name: "cached-rights-deny-silently",
        what: "an access that the rights of a cached page deny is dropped without a fault",
        explains: Explains::If(|difference| match difference {
            Difference::Outcome {
                context,
                model,
                qemu,
            } => {
                // What QEMU noted is the fault of a page that was not cached.
                let noted = qemu.record.filter(|_| qemu.status != qemu.status_before);
                let is_right = |page: &PageContext, reason: &Option<u8>| {
                    let is_denied =
                        page.was_accessed && matches!(reason, Some(0x05 | 0x06 | 0x85 | 0x86));
                    let is_noted = noted.is_some_and(|record| {
                        record.page() == page.address
                            && reason.is_some_and(|reason| {
                                is_same_reason(context, reason, record.reason())
                            })
                    });
                    is_denied || is_noted || reason.is_none()
                };
                context.pages.len() == model.blocked.len()
                    && context
                        .pages
                        .iter()
                        .zip(&model.blocked)
                        .all(|(page, reason)| is_right(page, reason))
                    && context.pages.iter().any(|page| page.was_accessed)
                    && model.data == qemu.data
                    && model.arrived == qemu.arrived
            }
            _ => false,
        }),
    },
    Deviation {
        name: "rights-before-interrupt-range",
        what: "a denied access to a page in the interrupt range is told by the right; the \
               architecture gives no order",
        explains: Explains::If(|difference| match difference {
            Difference::Reason {
                context,
                model,
                qemu,
            } => {
                matches!(model, 0x0e | 0x87)
                    && matches!(qemu, 0x05 | 0x06 | 0x85)
                    && context.pages.iter().any(|page| page.has_interrupt_leaf())
            }
            _ => false,
        }),
    },
    Deviation {
        name: "interrupt-range-before-update",
        what: "that a page is in the interrupt range is told before an update of its entry that \
               would fail (90); the architecture gives no order",
        explains: Explains::If(|difference| match difference {
            Difference::Reason {
                context,
                model: 0x90,
                qemu: 0x87,
            } => context.pages.iter().any(|page| page.has_interrupt_leaf()),
            _ => false,
        }),
    },
    Deviation {
        name: "large-page-over-interrupt-range",
        what: "a large page that holds the interrupt range is a fault wherever it is accessed",
        explains: Explains::If(|difference| match difference {
            Difference::Outcome {
                context,
                model,
                qemu,
            } => {
                let is_over = |page: usize| {
                    let page = &context.pages[page];
                    page.has_interrupt_leaf() && page.path.last().is_some_and(|leaf| leaf.level > 1)
                };
                let is_open = |page: usize| model.blocked.get(page) == Some(&None);
                let is_noted = match qemu.reason() {
                    Some(reason) => {
                        matches!(reason, 0x0e | 0x87) || is_noted_by_both(context, model, qemu)
                    }
                    // FPD is set, or a fault was pending.
                    None => context.fault_disable != 0 || qemu.record_before.is_some(),
                };
                (0..context.pages.len()).any(|page| is_over(page) && is_open(page))
                    && context.is_done_by_leaves(qemu, |page| is_open(page) && !is_over(page))
                    && is_noted
            }
            _ => false,
        }),
    },
    Deviation {
        name: "interrupt-entry-mask-unchecked",
        what: "interrupt-entry-cache descriptors are accepted with masks above ECAP.MHMV",
        explains: Explains::If(|difference| match difference {
            Difference::QueueError {
                descriptor: Some([q0, ..]),
                model,
                qemu,
                ..
            } => {
                let mask = *q0 >> 27 & 0x1f;
                q0 & 0x1f == 0x14
                    && mask > MAXIMUM_HANDLE_MASK
                    && model.information == RESERVED_FIELD
                    && !qemu.error
            }
            _ => false,
        }),
    },
    Deviation {
        name: "wait-for-nothing",
        what: "a wait with neither status nor interrupt is an error; it is a barrier",
        explains: Explains::If(|difference| match difference {
            Difference::QueueError {
                descriptor: Some([q0, ..]),
                model,
                qemu,
                ..
            } => q0 & 0xf == 5 && q0 & 0x30 == 0 && !model.error && qemu.error,
            _ => false,
        }),
    },
    Deviation {
        name: "rights-before-reserved-bits",
        what: "rights are looked at entry by entry, before reserved bits; the architecture looks \
               at those of the whole walk",
        explains: Explains::If(|difference| match difference {
            Difference::Reserved {
                place: Place::Table(_),
                model,
                qemu,
                repaired,
                ..
            } => {
                is_blocked(model, &[0x0c, 0x7a, 0x72])
                    && matches!(qemu.reason(), Some(0x05 | 0x06 | 0x85 | 0x81))
                    && qemu.has_same_effect(repaired)
            }
            _ => false,
        }),
    },
    Deviation {
        name: "reserved-mode-ignored",
        what: "TTM is ignored on a unit without scalable mode, and 10 is legacy mode (30)",
        explains: Explains::If(|difference| match difference {
            Difference::RootTable {
                reserved_mode: true,
                context,
                model,
                qemu,
                right,
            } => {
                let as_legacy = match context.mode {
                    Mode::Legacy => qemu.has_same_effect(right),
                    Mode::Scalable => {
                        qemu.is_without_data()
                            && matches!(qemu.reason(), Some(0x01 | 0x02 | 0x09 | 0x0a))
                    }
                };
                is_blocked(model, &[0x30]) && as_legacy
            }
            _ => false,
        }),
    },
    Deviation {
        name: "context-domain-is-global",
        what: "CCMD says that a domain-selective invalidation was global, as hardware may",
        explains: Explains::If(|difference| match difference {
            Difference::InvalidationResult { name, model, qemu } => {
                *name == "CCMD" && *model == 2 << 59 && *qemu == 1 << 59
            }
            _ => false,
        }),
    },
    Deviation {
        name: "no-queue-error-information",
        what: "IQERCD stays 0 after a queue error",
        explains: Explains::If(|difference| match difference {
            Difference::QueueError { model, qemu, .. } => {
                model.error
                    && qemu.error
                    && qemu.information == 0
                    && (model.head, model.status) == (qemu.head, qemu.status)
            }
            Difference::Register { name, model, qemu } => {
                *name == "IQERCD" && (1..8).contains(model) && *qemu == 0
            }
            _ => false,
        }),
    },
];

/// QEMU's unit was not told the width of first-stage addresses.
fn is_without_width(context: &Context) -> bool {
    context.mode == Mode::Scalable
        && context.kind == Some(Kind::First)
        && context.flaw == Some(Flaw::WidthMissing)
}

/// QEMU did the same as without the bit that made the model block.
fn is_ignored(difference: &Difference, reason: u8) -> bool {
    match difference {
        Difference::Reserved {
            model,
            qemu,
            repaired,
            ..
        } => is_blocked(model, &[reason]) && qemu.has_same_effect(repaired),
        _ => false,
    }
}

/// The DMA went to its address as it is.
fn is_passed_through(context: &Context, seen: &Seen) -> bool {
    let is_data = |address: u64| DATA_PAGES.contains(&(address & !0xfff));
    let addresses = || (0..context.len as u64).map(|index| context.address.wrapping_add(index));
    let is_read = context.write
        || addresses()
            .zip(&seen.data)
            .all(|(at, byte)| *byte == if is_data(at) { content(at) } else { 0 });
    let is_written = !context.write
        || seen
            .arrived
            .iter()
            .all(|arrived| addresses().any(|at| at == arrived.at))
            && seen.arrived.is_empty() != is_data(context.address);
    is_read && is_written && seen.status == seen.status_before
}

/// QEMU recorded the fault of a page that the model blocked for the same reason.
fn is_noted_by_both(context: &Context, model: &Seen, qemu: &Seen) -> bool {
    let (Some(record), Some(reason)) = (qemu.record, qemu.reason()) else {
        return false;
    };
    context
        .pages
        .iter()
        .zip(&model.blocked)
        .any(|(page, blocked)| {
            page.address == record.page()
                && blocked.is_some_and(|blocked| is_same_reason(context, blocked, reason))
        })
}

/// Something was blocked for one of these reasons and for no other.
fn is_blocked(seen: &Seen, reasons: &[u8]) -> bool {
    let mut blocked = seen.blocked.iter().flatten().peekable();
    blocked.peek().is_some() && blocked.all(|reason| reasons.contains(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_deviation_has_a_name_of_its_own_and_says_what_it_is() {
        for (index, deviation) in ALL.iter().enumerate() {
            assert!(!deviation.what.is_empty(), "{}", deviation.name);
            let twin = ALL.iter().skip(index + 1);
            assert!(
                !twin
                    .map(|twin| twin.name)
                    .any(|name| name == deviation.name)
            );
        }
    }

    #[test]
    fn what_nothing_is_known_of_is_not_explained() {
        let difference = Difference::Register {
            name: "GSTS",
            model: 1 << 31,
            qemu: 0,
        };
        assert_eq!(of(&difference), None);
    }
}
