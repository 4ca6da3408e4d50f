//! Read-only walks of first-stage, second-stage and nested tables, as hardware does them
//! (§3.6 to §3.8).
//!
//! One walker serves both sides: the host's tables, addressed by `Hpa`, and a guest's, addressed
//! by `Gpa`. A walk reads each entry once, reads at most one entry a level, and changes nothing:
//! accessed and dirty bits are the caller's business.

use crate::arch::address::{
    AddressWidth, FirstStagePaging, Gpa, Hpa, Iova, PageSize, PhysicalAddress,
};
use crate::arch::fault::FaultReason;
use crate::arch::features::TableFeatures;
use crate::arch::first_stage::{FirstStageEntry, FirstStageEntryFault, FirstStageEntryMeaning};
use crate::arch::second_stage::{
    Rights, SecondStageEntry, SecondStageEntryFault, SecondStageEntryMeaning,
};
use crate::mem::{GuestMemory, HostMemory};

/// Where a walk reads table entries.
pub trait EntrySource<A> {
    /// The 8-byte entry at an address, or `None` where there is no memory.
    fn read_entry(&self, at: A) -> Option<u64>;
}

/// The host's own tables.
#[derive(Clone, Copy, Debug)]
pub struct HostTables<'a, M>(pub &'a M);

impl<M: HostMemory> EntrySource<Hpa> for HostTables<'_, M> {
    #[inline]
    fn read_entry(&self, at: Hpa) -> Option<u64> {
        Some(self.0.read64(at))
    }
}

/// A guest's tables, in the guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct GuestTables<'a, M>(pub &'a M);

impl<M: GuestMemory> EntrySource<Gpa> for GuestTables<'_, M> {
    #[inline]
    fn read_entry(&self, at: Gpa) -> Option<u64> {
        self.0.read_u64(at).ok()
    }
}

/// What a request wants of the page it names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// The rights it needs: both for an atomic operation.
    pub rights: Rights,
    /// Supervisor privilege (`PRIV` with PASID, or `RID_PRIV`).
    pub privileged: bool,
}

impl Access {
    /// A read by a user-privilege request.
    pub const READ: Self = Self {
        rights: Rights::READ,
        privileged: false,
    };
    /// A write by a user-privilege request.
    pub const WRITE: Self = Self {
        rights: Rights::WRITE,
        privileged: false,
    };
}

/// Where a walk ends well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation<A> {
    /// The translated address, offset included.
    pub address: A,
    /// The rights that all levels grant together.
    pub rights: Rights,
    /// Size of the leaf.
    pub size: PageSize,
}

/// Why a walk ends in a fault, with the level of the entry that caused it (1 is the lowest).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalkFault {
    /// First stage: the address is not canonical (SGN.1).
    NonCanonical,
    /// Second stage: the address passes the width of the table (SGN.5).
    BeyondWidth,
    /// The top-level table is in no memory (SFS.4, SSS.4).
    RootUnreadable(Stage),
    /// A lower table is in no memory (SFS.1, SSS.1).
    TableUnreadable(Stage, u8),
    /// An entry is not present (SFS.2, SSS.2).
    NotPresent(Stage, u8),
    /// An entry has reserved bits set (SFS.3, SSS.3).
    Reserved(Stage, u8),
    /// First stage: a user request met a supervisor entry (SGN.2).
    Supervisor(u8),
    /// The write right is missing (SGN.6).
    WriteDenied(Stage),
    /// The read right is missing (SGN.7).
    ReadDenied,
    /// The result lies in the interrupt range 0xFEEx_xxxx (SGN.8).
    InterruptRange,
}

/// The two stages of translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// First stage.
    First,
    /// Second stage.
    Second,
}

impl WalkFault {
    /// The reason that hardware records: `legacy` while the root table is in legacy mode (§7.1.3).
    pub const fn reason(self, legacy: bool) -> FaultReason {
        match (self, legacy) {
            (Self::NonCanonical, _) => FaultReason::AddressNotCanonical,
            (Self::BeyondWidth, true) => FaultReason::LegacyAddressTooLarge,
            (Self::BeyondWidth, false) => FaultReason::AddressBeyondSecondStage,
            (Self::RootUnreadable(Stage::First), _) => FaultReason::FirstStageRootUnreadable,
            (Self::RootUnreadable(Stage::Second), true) => FaultReason::LegacyContextEntryInvalid,
            (Self::RootUnreadable(Stage::Second), false) => FaultReason::SecondStageRootUnreadable,
            (Self::TableUnreadable(Stage::First, _), _) => FaultReason::FirstStageUnreadable,
            (Self::TableUnreadable(Stage::Second, _), true) => {
                FaultReason::LegacySecondStageUnreadable
            }
            (Self::TableUnreadable(Stage::Second, _), false) => FaultReason::SecondStageUnreadable,
            (Self::NotPresent(Stage::First, _), _) => FaultReason::FirstStageNotPresent,
            // Legacy mode has no reason of its own for an entry without rights: it is the missing
            // right; `reason_for` knows which.
            (Self::NotPresent(Stage::Second, _), true) => FaultReason::LegacyReadDenied,
            (Self::NotPresent(Stage::Second, _), false) => FaultReason::SecondStageNotPresent,
            (Self::Reserved(Stage::First, _), _) => FaultReason::FirstStageReserved,
            (Self::Reserved(Stage::Second, _), true) => FaultReason::LegacySecondStageReserved,
            (Self::Reserved(Stage::Second, _), false) => FaultReason::SecondStageReserved,
            (Self::Supervisor(_), _) => FaultReason::UserRequestDenied,
            (Self::WriteDenied(_), true) => FaultReason::LegacyWriteDenied,
            (Self::WriteDenied(_), false) => FaultReason::WriteDenied,
            (Self::ReadDenied, true) => FaultReason::LegacyReadDenied,
            (Self::ReadDenied, false) => FaultReason::ReadDenied,
            (Self::InterruptRange, true) => FaultReason::LegacyInterruptAddress,
            (Self::InterruptRange, false) => FaultReason::InterruptAddress,
        }
    }

    /// As [`reason`](Self::reason), for a request that wanted `access`: in legacy mode an entry
    /// without any right is the lack of the right asked for (LGN.2, LGN.3).
    pub const fn reason_for(self, access: Access, legacy: bool) -> FaultReason {
        match self {
            Self::NotPresent(Stage::Second, _) if legacy && access.rights.write => {
                FaultReason::LegacyWriteDenied
            }
            _ => self.reason(legacy),
        }
    }
}

/// A second-stage table to walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondStageRoot<A> {
    /// Address of the top-level table page.
    pub root: A,
    /// Levels and width of the table.
    pub width: AddressWidth,
}

/// Walks a second-stage table for an input address (§3.7).
///
/// # Errors
///
/// [`WalkFault`], in the order in which hardware finds them.
pub fn walk_second_stage<A: PhysicalAddress>(
    source: &impl EntrySource<A>,
    table: SecondStageRoot<A>,
    features: &TableFeatures,
    input: u64,
    access: Access,
) -> Result<Translation<A>, WalkFault> {
    let translation = second_stage_leaf(source, table, features, input)?;
    if access.rights.write && !translation.rights.write {
        return Err(WalkFault::WriteDenied(Stage::Second));
    }
    if access.rights.read && !translation.rights.read {
        return Err(WalkFault::ReadDenied);
    }
    deny_interrupt_range(translation)
}

/// The leaf for an input address whatever its rights, as long as it has any.
///
/// # Errors
///
/// [`WalkFault`], but never a missing right.
pub fn second_stage_leaf<A: PhysicalAddress>(
    source: &impl EntrySource<A>,
    table: SecondStageRoot<A>,
    features: &TableFeatures,
    input: u64,
) -> Result<Translation<A>, WalkFault> {
    let bits = features.maximum_guest_address_width.min(table.width.bits());
    if input.checked_shr(u32::from(bits)).unwrap_or(0) != 0 {
        return Err(WalkFault::BeyondWidth);
    }
    let top = table.width.levels();
    let mut page = table.root;
    let mut rights = Rights::READ_WRITE;
    let mut level = top;
    loop {
        let entry = match source.read_entry(entry_address(page, input, level)) {
            Some(bits) => SecondStageEntry::from_u64(bits),
            None if level == top => return Err(WalkFault::RootUnreadable(Stage::Second)),
            None => return Err(WalkFault::TableUnreadable(Stage::Second, level)),
        };
        let meaning = entry
            .classify(level, features)
            .map_err(|fault| match fault {
                SecondStageEntryFault::NotPresent => WalkFault::NotPresent(Stage::Second, level),
                SecondStageEntryFault::ReservedNonZero(_) => {
                    WalkFault::Reserved(Stage::Second, level)
                }
            })?;
        rights = rights.intersection(entry.rights());
        match meaning {
            SecondStageEntryMeaning::Leaf { .. } if rights.is_none() => {
                return Err(WalkFault::NotPresent(Stage::Second, level));
            }
            SecondStageEntryMeaning::Leaf { address, size } => {
                return Ok(Translation {
                    address: with_offset(address, input, size),
                    rights,
                    size,
                });
            }
            // Level 1 only has leaves, so the walk ends there at the latest.
            SecondStageEntryMeaning::Table { address } => page = address,
        }
        level = level.saturating_sub(1);
    }
}

/// A first-stage table to walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirstStageRoot<A> {
    /// Address of the top-level table page.
    pub root: A,
    /// 4- or 5-level paging.
    pub paging: FirstStagePaging,
    /// Supervisor writes respect the R/W bit (`WPE`).
    pub write_protect: bool,
}

/// Walks a first-stage table for a request address (§3.6).
///
/// # Errors
///
/// [`WalkFault`], in the order in which hardware finds them.
pub fn walk_first_stage<A: PhysicalAddress>(
    source: &impl EntrySource<A>,
    table: FirstStageRoot<A>,
    features: &TableFeatures,
    input: Iova,
    access: Access,
) -> Result<Translation<A>, WalkFault> {
    if !table.paging.is_canonical(input) {
        return Err(WalkFault::NonCanonical);
    }
    let top = table.paging.levels();
    let mut page = table.root;
    let mut writable = true;
    let mut level = top;
    loop {
        let entry = match source.read_entry(entry_address(page, input.as_u64(), level)) {
            Some(bits) => FirstStageEntry::from_u64(bits),
            None if level == top => return Err(WalkFault::RootUnreadable(Stage::First)),
            None => return Err(WalkFault::TableUnreadable(Stage::First, level)),
        };
        let meaning = entry
            .classify(level, features)
            .map_err(|fault| match fault {
                FirstStageEntryFault::NotPresent => WalkFault::NotPresent(Stage::First, level),
                FirstStageEntryFault::ReservedNonZero(_) => {
                    WalkFault::Reserved(Stage::First, level)
                }
            })?;
        if !access.privileged && !entry.is_user() {
            return Err(WalkFault::Supervisor(level));
        }
        writable &= entry.is_writable();
        match meaning {
            FirstStageEntryMeaning::Leaf { address, size } => {
                let write = writable || access.privileged && !table.write_protect;
                if access.rights.write && !write {
                    return Err(WalkFault::WriteDenied(Stage::First));
                }
                let rights = Rights { read: true, write };
                let address = with_offset(address, input.as_u64(), size);
                return deny_interrupt_range(Translation {
                    address,
                    rights,
                    size,
                });
            }
            FirstStageEntryMeaning::Table { address } => page = address,
        }
        level = level.saturating_sub(1);
    }
}

fn deny_interrupt_range<A: PhysicalAddress>(
    translation: Translation<A>,
) -> Result<Translation<A>, WalkFault> {
    if is_interrupt_address(translation.address.to_u64()) {
        return Err(WalkFault::InterruptRange);
    }
    Ok(translation)
}

/// Whether an address lies in the interrupt range 0xFEE0_0000 to 0xFEEF_FFFF (§3.15).
pub const fn is_interrupt_address(address: u64) -> bool {
    address >> 20 == 0xfee
}

/// Address of the entry for `input` in a table page of `level`.
#[inline]
fn entry_address<A: PhysicalAddress>(page: A, input: u64, level: u8) -> A {
    let shift = 12 + 9 * (u32::from(level).saturating_sub(1) % 5);
    A::from_u64(page.to_u64() | (input >> shift & 0x1ff) << 3)
}

#[inline]
fn with_offset<A: PhysicalAddress>(page: A, input: u64, size: PageSize) -> A {
    A::from_u64(page.to_u64() | input & (size.len_bytes() - 1))
}
