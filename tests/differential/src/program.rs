//! Programs: what software does with a unit, and what its devices do meanwhile.

use std::fmt;

use vtd_model::CacheMode;

/// How software translates for the devices of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// First-stage tables, with 4 levels.
    First,
    /// Second-stage tables.
    Second,
    /// Addresses are host addresses.
    PassThrough,
}

/// A domain that a program has from the start: a domain-id and, by its kind, a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Domain {
    /// What it is.
    pub kind: Kind,
    /// Levels of its tables.
    pub levels: u8,
    /// Its domain-id; a program may change it.
    pub domain_id: u16,
}

/// How much software invalidates after a change: what it must, or more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// What is needed and no more.
    Exact,
    /// All of the domain.
    Domain,
    /// Everything.
    Global,
}

/// Where a page or an entry leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// One of the frames with data, by number.
    Data(u8),
    /// The interrupt range, or a large page that holds it.
    Interrupts,
}

/// What software does to an entry above the leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upper {
    /// Gives it rights: bit 0 read, 1 write, 2 user.
    Rights(u8),
    /// Makes it absent.
    Absent,
    /// Lets it lead to where there is no memory.
    Nowhere,
}

/// What is wrong with the structures of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// The root entry is absent. In legacy mode both devices share it.
    RootAbsent,
    /// The root entry leads nowhere.
    RootNowhere,
    /// The context entry is absent.
    ContextAbsent,
    /// The context entry leads nowhere.
    ContextNowhere,
    /// The directory entry is absent.
    DirectoryAbsent,
    /// The directory entry leads nowhere.
    DirectoryNowhere,
    /// The PASID-table entry, or the legacy context entry, leads nowhere.
    TableNowhere,
    /// The translation type is this one.
    TranslationType(u8),
    /// The address width is this one.
    Width(u8),
    /// QEMU's unit is not told the address width of first-stage tables, as the architecture has it.
    WidthMissing,
    /// The first-stage paging mode is this one.
    PagingMode(u8),
}

/// Which entry a reserved bit is set in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The root entry.
    Root,
    /// The context entry.
    Context,
    /// The directory entry.
    Directory,
    /// The PASID-table entry.
    Pasid,
    /// The entry of this level of the page tables, or the leaf if that is above.
    Table(u8),
}

/// An address that a device uses, resolved by how the device is translated then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address {
    /// In a page that programs map, by number; in a data page where nothing translates.
    Slot(u8, u16),
    /// In a data page, by its host address.
    Data(u8, u16),
    /// In a page beyond what tables reach; in a data page where translation is off.
    Beyond(u8, u16),
    /// In the interrupt range.
    Interrupt(u32),
}

/// One DMA of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dma {
    /// Device 0 or 1.
    pub device: u8,
    /// To memory.
    pub write: bool,
    /// Where.
    pub address: Address,
    /// How many bytes.
    pub len: u16,
    /// Faults are left as they are after it.
    pub keep_faults: bool,
}

/// What there is of the invalidation interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interface {
    /// The registers; in scalable mode a new queue.
    Registers,
    /// A queue of 128-bit descriptors; in scalable mode of 256-bit ones.
    Narrow,
    /// A queue of 256-bit descriptors, if the unit has them.
    Wide,
}

/// Which tables the root table address names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Legacy mode.
    Legacy,
    /// Scalable mode.
    Scalable,
}

/// One step. Whatever changes tables also makes both units see the change.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Step {
    /// Maps a page.
    Map {
        /// By number.
        domain: u8,
        /// The page, by number.
        slot: u8,
        /// The level of its entry, 1 to 3; 1 where that cannot be.
        level: u8,
        /// Where to.
        target: Target,
        /// Bit 0 read, 1 write, 2 user.
        rights: u8,
        /// Ignored bits, and accessed and dirty ones.
        extra: u64,
        /// How much is invalidated.
        scope: Scope,
    },
    /// Makes a page absent.
    Unmap {
        /// By number.
        domain: u8,
        /// The page, by number.
        slot: u8,
        /// How much is invalidated.
        scope: Scope,
    },
    /// Changes an entry above a page.
    Upper {
        /// By number.
        domain: u8,
        /// The page, by number.
        slot: u8,
        /// The level of the entry, from 2 on.
        level: u8,
        /// What becomes of it.
        change: Upper,
        /// How much is invalidated.
        scope: Scope,
    },
    /// Gives a domain new tables: empty ones, or a copy of the top-level one.
    NewRoot {
        /// By number.
        domain: u8,
        /// The new table has the old one's entries.
        copied: bool,
        /// How much is invalidated.
        scope: Scope,
    },
    /// Gives a domain another domain-id.
    NewDomainId {
        /// By number.
        domain: u8,
        /// How much is invalidated.
        scope: Scope,
    },
    /// Lets a device use a domain, or none.
    Attach {
        /// By number.
        device: u8,
        /// By number.
        domain: Option<u8>,
        /// Fault processing is disabled in: bit 0 context, 1 directory, 2 PASID-table entry.
        fault_disable: u8,
        /// How much is invalidated.
        scope: Scope,
    },
    /// Makes the structures of a device wrong, or right again.
    Break {
        /// By number.
        device: u8,
        /// What is wrong from now on.
        flaw: Option<Flaw>,
        /// How much is invalidated.
        scope: Scope,
    },
    /// A device does DMA.
    Dma(Dma),
    /// Switches translation.
    Translation(bool),
    /// Sets the root table pointer to tables of the mode, which are new ones or those of before;
    /// translation is off meanwhile if the mode changes.
    RootTable {
        /// The mode.
        mode: Mode,
        /// A copy of the root table.
        copied: bool,
    },
    /// Sets the root table pointer to where there is no memory, then right again.
    RootTableNowhere(Dma),
    /// Sets a reserved mode with translation off, and then right again.
    ReservedMode(Dma),
    /// Changes how invalidations are asked for.
    Interface(Interface),
    /// Invalidates more than anything needs: by number.
    Invalidate(u8),
    /// Waits: bit 0 status, 1 interrupt, 2 fence. Not status and interrupt: that ends QEMU.
    Wait(u8),
    /// Submits a descriptor that is not valid, or that QEMU takes for one.
    BadDescriptor([u64; 4]),
    /// Sets the tail to where it must not be.
    BadTail(u32),
    /// Sets a bit of an entry for the time of a DMA.
    Reserved {
        /// Which entry; that of the DMA's device, on the way to its address.
        place: Place,
        /// Which word of it.
        word: u8,
        /// Which bit.
        bit: u8,
        /// The DMA.
        dma: Dma,
    },
    /// Clears P alone in the PASID-table entry of the DMA's device, and sets it again.
    ClearPresent(Dma),
    /// Lets a device that is passed through use a domain, without the context-cache invalidation
    /// that QEMU needs and the architecture does not.
    LeavePassThrough {
        /// The domain, by number.
        domain: u8,
        /// DMA after it; that of its device.
        dma: Dma,
    },
}

/// A whole program.
#[derive(Clone, PartialEq, Debug)]
pub struct Program {
    /// What it was generated from.
    pub seed: u64,
    /// How much the model's caches keep.
    pub cache_mode: CacheMode,
    /// The mode it starts in.
    pub mode: Mode,
    /// Its domains.
    pub domains: Vec<Domain>,
    /// Its steps.
    pub steps: Vec<Step>,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}, {:?} mode, model's caches {:?}",
            self.seed, self.mode, self.cache_mode
        )?;
        for (index, domain) in self.domains.iter().enumerate() {
            writeln!(
                f,
                "domain {index}: {:?}, {} levels, domain-id {:#x}",
                domain.kind, domain.levels, domain.domain_id
            )?;
        }
        for (index, step) in self.steps.iter().enumerate() {
            writeln!(f, "{index:3}  {step:x?}")?;
        }
        Ok(())
    }
}
