//! The guest's tables: root, contexts, PASID tables, page tables of the kind it was offered.

use vtd_nest::arch::address::{AddressWidth, FirstStagePaging, Gpa, PageSize};
use vtd_nest::arch::context::{
    ContextAttributes, DirectoryOrder, LegacyContextEntry, ScalableContextEntry,
};
use vtd_nest::arch::descriptor::{
    ContextGranularity, Descriptor, IotlbGranularity, PasidCacheGranularity, PasidIotlbGranularity,
};
use vtd_nest::arch::first_stage::FirstStageEntry;
use vtd_nest::arch::id::{DomainId, Pasid, SourceId};
use vtd_nest::arch::pasid::{FirstStageFlags, PasidDirectoryEntry, PasidEntry, PasidEntryOptions};
use vtd_nest::arch::register::{DescriptorWidth, TranslationTableMode};
use vtd_nest::arch::root::{LegacyRootEntry, RootHalf, ScalableRootEntry};
use vtd_nest::arch::second_stage::SecondStageEntry;
use vtd_nest::nest::Backend;
use vtd_nest::paging::Rights;

use super::{D0, Guest, IOVA};

/// Guest-physical place of the root table.
pub(crate) const ROOT: u64 = 0x1000;
const CONTEXTS: u64 = 0x1_0000;
const DIRECTORIES: u64 = 0x20_0000;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Guest-physical place of a device's PASID directory, 128 KiB.
const fn directory(source_id: SourceId) -> u64 {
    DIRECTORIES + (source_id.bus() as u64 & 3) * 0x2_0000
}

impl Guest {
    /// Root, context and an empty directory for a device.
    pub(crate) fn install_tables(&mut self, source_id: SourceId) {
        let range = directory(source_id)..directory(source_id) + (128 << 10);
        for slot in std::mem::take(&mut self.directory_entries) {
            if range.contains(&slot) {
                self.write_u64(slot, 0);
            } else {
                self.directory_entries.push(slot);
            }
        }
        self.install_context(source_id, DirectoryOrder::LARGEST);
    }

    /// Root and context entry of a device, whose directory stays as it is.
    pub(crate) fn install_context(&mut self, source_id: SourceId, order: DirectoryOrder) {
        let contexts = Gpa::new(CONTEXTS + 0x1000 * u64::from(source_id.bus()));
        if self.is_legacy() {
            let root = LegacyRootEntry::new(contexts).to_bytes();
            self.write(self.root_entry_at(source_id), &root);
            self.write(self.context_at(source_id), &[0; 16]);
            return;
        }
        let root = ScalableRootEntry::new(Some(contexts), Some(contexts)).to_bytes();
        let half = usize::from(RootHalf::of(source_id).quadword()) * 8;
        self.write(self.root_entry_at(source_id), &root[half..half + 8]);
        let attributes = ContextAttributes {
            pasid_enabled: self.vm.offer().features.extended.has_pasid(),
            ..ContextAttributes::default()
        };
        let context = ScalableContextEntry::new(Gpa::new(directory(source_id)), order, attributes);
        self.write(self.context_at(source_id), &context.to_bytes());
    }

    /// Guest-physical place of the half of the root entry that covers a device.
    pub(crate) fn root_entry_at(&self, source_id: SourceId) -> u64 {
        if self.is_legacy() {
            return ROOT + 16 * u64::from(source_id.bus());
        }
        ROOT + 16 * u64::from(source_id.bus()) + 8 * u64::from(RootHalf::of(source_id).quadword())
    }

    /// Guest-physical place of a device's context entry.
    pub(crate) fn context_at(&self, source_id: SourceId) -> u64 {
        let offset = if self.is_legacy() {
            16 * u64::from(LegacyContextEntry::index(source_id))
        } else {
            32 * u64::from(ScalableContextEntry::index(source_id))
        };
        CONTEXTS + 0x1000 * u64::from(source_id.bus()) + offset
    }

    /// Guest-physical place of the directory entry for a PASID.
    pub(crate) fn directory_entry_at(&self, source_id: SourceId, pasid: u32) -> u64 {
        directory(source_id) + 8 * u64::from(pasid >> 6)
    }

    /// Guest-physical place of the entry for a PASID; its table is made if there is none. In legacy
    /// mode it is the context entry.
    pub(crate) fn entry_at(&mut self, source_id: SourceId, pasid: u32) -> u64 {
        if self.is_legacy() {
            assert_eq!(pasid, 0, "legacy mode has no PASIDs");
            return self.context_at(source_id);
        }
        let slot = self.directory_entry_at(source_id, pasid);
        let mut entry = self.read_u64(slot);
        if entry & 1 == 0 {
            entry = PasidDirectoryEntry::new(Gpa::new(self.page())).as_u64();
            self.write_u64(slot, entry);
            self.directory_entries.push(slot);
        }
        (entry & ADDRESS) + 64 * u64::from(pasid & 63)
    }

    /// Writes a PASID entry, in legacy mode the context entry that says the same; and says nothing.
    pub(crate) fn set_entry(&mut self, source_id: SourceId, pasid: u32, entry: &PasidEntry) {
        let at = self.entry_at(source_id, pasid);
        self.write(at, &self.entry_bytes(entry));
    }

    /// The bytes that [`set_entry`](Self::set_entry) writes.
    pub(crate) fn entry_bytes(&self, entry: &PasidEntry) -> Vec<u8> {
        if self.is_legacy() {
            let widest = self.vm.offer().features.capability.largest_address_width();
            let widest = widest.expect("a width").field();
            legacy_context(entry, widest).to_bytes().to_vec()
        } else {
            entry.to_bytes().to_vec()
        }
    }

    /// Whether the guest is shown legacy mode only.
    pub(crate) fn is_legacy(&self) -> bool {
        !self.vm.offer().features.extended.has_scalable_mode()
    }

    /// The mode of the guest's root table.
    pub(crate) fn table_mode(&self) -> TranslationTableMode {
        if self.is_legacy() {
            TranslationTableMode::Legacy
        } else {
            TranslationTableMode::Scalable
        }
    }

    /// The width of the guest's descriptors.
    pub(crate) fn descriptor_width(&self) -> DescriptorWidth {
        if self.is_legacy() {
            DescriptorWidth::Bits128
        } else {
            DescriptorWidth::Bits256
        }
    }

    /// Whether the guest is shown the first stage.
    pub(crate) fn is_first_stage(&self) -> bool {
        self.vm.offer().backend == Backend::Nested
    }

    /// An entry of the kind that the unit offers.
    pub(crate) fn entry(&self, root: u64, domain: u16) -> PasidEntry {
        let (root, domain_id) = (Gpa::new(root), DomainId::new(domain));
        let options = PasidEntryOptions::default();
        if self.is_first_stage() {
            let flags = FirstStageFlags::default();
            PasidEntry::first_stage(root, FirstStagePaging::Level4, flags, domain_id, options)
        } else {
            PasidEntry::guest_second_stage(root, self.width(), domain_id, options)
        }
    }

    pub(crate) fn pass_through(domain: u16) -> PasidEntry {
        PasidEntry::pass_through(DomainId::new(domain), PasidEntryOptions::default())
    }

    /// The widest tables that the guest's unit has.
    pub(crate) fn width(&self) -> AddressWidth {
        let features = self.vm.offer().features.capability;
        let widths = [AddressWidth::Bits48, AddressWidth::Bits39];
        let supported = |width: &AddressWidth| features.supports_width(*width);
        widths
            .into_iter()
            .find(supported)
            .unwrap_or(AddressWidth::Bits48)
    }

    /// Levels of the guest's page tables.
    pub(crate) fn levels(&self) -> u32 {
        if self.is_first_stage() {
            4
        } else {
            self.second_stage_levels()
        }
    }

    fn second_stage_levels(&self) -> u32 {
        match self.width() {
            AddressWidth::Bits39 => 3,
            _ => 4,
        }
    }

    /// A page table of the kind that the unit offers, that maps each I/O virtual page to a
    /// guest-physical one.
    pub(crate) fn table(&mut self, mappings: &[(u64, u64)]) -> u64 {
        let root = self.page();
        for &(iova, page) in mappings {
            self.map(root, iova, Some(page));
        }
        root
    }

    /// Changes one page of a table, and says nothing. Missing tables are made.
    pub(crate) fn map(&mut self, root: u64, iova: u64, page: Option<u64>) {
        let leaf = page.map_or(0, |page| {
            self.leaf(page, PageSize::Size4KiB, Rights::READ_WRITE)
        });
        self.set_leaf(root, iova, 1, leaf);
    }

    /// A leaf of the kind that the unit offers, for a user, accessed and dirty preset.
    pub(crate) fn leaf(&self, page: u64, size: PageSize, rights: Rights) -> u64 {
        let at = Gpa::new(page);
        if self.is_first_stage() {
            let leaf = FirstStageEntry::leaf(at, size, rights.contains(Rights::WRITE), true);
            let preset = FirstStageEntry::ACCESSED | FirstStageEntry::DIRTY;
            leaf.with(preset).as_u64()
        } else {
            SecondStageEntry::leaf(at, size, rights, false).as_u64()
        }
    }

    /// Sets the raw entry of an address at a level: 1 is the last. Missing tables are made.
    pub(crate) fn set_leaf(&mut self, root: u64, iova: u64, level: u32, entry: u64) {
        let slot = self.slot_at(root, iova, level);
        self.write_u64(slot, entry);
    }

    /// Where the last-level entry of an address is; missing tables are made.
    pub(crate) fn slot(&mut self, root: u64, iova: u64) -> u64 {
        self.slot_at(root, iova, 1)
    }

    /// Where the entry of an address is at a level; missing tables are made.
    pub(crate) fn slot_at(&mut self, root: u64, iova: u64, level: u32) -> u64 {
        let index = |level: u32| (iova >> (3 + 9 * level) & 0x1ff) * 8;
        let mut table = root;
        for level in (level + 1..=self.levels()).rev() {
            let slot = table + index(level);
            let entry = self.read_u64(slot);
            table = if entry & 1 != 0 {
                entry & ADDRESS
            } else {
                let below = self.page();
                self.write_u64(slot, self.table_entry(below));
                below
            };
        }
        table + index(level)
    }

    /// An entry that leads to a table.
    pub(crate) fn table_entry(&self, below: u64) -> u64 {
        let at = Gpa::new(below);
        if self.is_first_stage() {
            let entry = FirstStageEntry::table(at);
            entry.with(FirstStageEntry::ACCESSED).as_u64()
        } else {
            SecondStageEntry::table(at).as_u64()
        }
    }

    /// A second-stage table whatever is offered: for legacy roots.
    pub(crate) fn second_stage_table(&mut self, iova: u64, page: u64) -> (u64, u64) {
        let root = self.page();
        let mut table = root;
        for level in (2..=self.second_stage_levels()).rev() {
            let below = self.page();
            let slot = table + (iova >> (3 + 9 * level) & 0x1ff) * 8;
            self.write_u64(slot, SecondStageEntry::table(Gpa::new(below)).as_u64());
            table = below;
        }
        let slot = table + (iova >> 12 & 0x1ff) * 8;
        let leaf = SecondStageEntry::leaf(
            Gpa::new(page),
            PageSize::Size4KiB,
            Rights::READ_WRITE,
            false,
        );
        self.write_u64(slot, leaf.as_u64());
        (root, slot)
    }

    /// A legacy root table with one context: the device, translated by a second-stage table.
    pub(crate) fn legacy_root(&mut self, source_id: SourceId, table: u64, domain: u16) -> u64 {
        let (root, contexts) = (self.page(), self.page());
        let entry = LegacyRootEntry::new(Gpa::new(contexts));
        self.write(root + 16 * u64::from(source_id.bus()), &entry.to_bytes());
        let (width, domain_id) = (self.width(), DomainId::new(domain));
        let context = LegacyContextEntry::second_stage(Gpa::new(table), width, domain_id, false);
        let index = u64::from(LegacyContextEntry::index(source_id));
        self.write(contexts + 16 * index, &context.to_bytes());
        root
    }

    /// Binds a device's PASID under a domain-id to a table that maps [`IOVA`] to a fresh data
    /// page: root and page.
    pub(crate) fn bind(&mut self, source_id: SourceId, pasid: u32, domain: u16) -> (u64, u64) {
        let page = self.data_page();
        let root = self.table(&[(IOVA, page)]);
        let entry = self.entry(root, domain);
        self.set_entry(source_id, pasid, &entry);
        self.invalidate_pasid(domain, pasid);
        (root, page)
    }

    /// (D0, the scenario's PASID) bound under domain-id 7, and seen to work: root and page.
    pub(crate) fn bound(&mut self) -> (u64, u64) {
        let (root, page) = self.bind(D0, self.pasid, 7);
        self.expect_reaches(D0, self.tag, IOVA, page);
        self.lab.hypervisor.take_descriptors();
        (root, page)
    }

    /// A second table that maps [`IOVA`] to another fresh data page: root and page.
    pub(crate) fn other_table(&mut self) -> (u64, u64) {
        let page = self.data_page();
        (self.table(&[(IOVA, page)]), page)
    }

    // ---- invalidations, each with a wait that must complete ----

    #[track_caller]
    pub(crate) fn invalidate_pasid(&mut self, domain: u16, pasid: u32) {
        self.submit(&[self.entry_invalidation(domain, pasid)]);
    }

    /// The descriptor of [`invalidate_pasid`](Self::invalidate_pasid). In legacy mode, where
    /// entries that are not present are cached under another domain-id than those that are, it
    /// names all contexts.
    pub(crate) fn entry_invalidation(&self, domain: u16, pasid: u32) -> Descriptor {
        if self.is_legacy() {
            Descriptor::ContextCache {
                granularity: ContextGranularity::Global,
            }
        } else {
            pasid_cache(domain, pasid)
        }
    }

    #[track_caller]
    pub(crate) fn invalidate_pasid_domain(&mut self, domain: u16) {
        if self.is_legacy() {
            return self.invalidate_pasid_global();
        }
        self.submit(&[Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Domain(DomainId::new(domain)),
        }]);
    }

    #[track_caller]
    pub(crate) fn invalidate_pasid_global(&mut self) {
        if self.is_legacy() {
            return self.submit(&[Descriptor::ContextCache {
                granularity: ContextGranularity::Global,
            }]);
        }
        self.submit(&[Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Global,
        }]);
    }

    #[track_caller]
    pub(crate) fn invalidate_context(&mut self, source_id: SourceId) {
        self.submit(&[Descriptor::ContextCache {
            granularity: ContextGranularity::Device {
                source_id,
                function_mask: 0,
                domain_id: DomainId::new(0),
            },
        }]);
    }

    #[track_caller]
    pub(crate) fn invalidate_iotlb(&mut self, granularity: IotlbGranularity) {
        self.submit(&[Descriptor::Iotlb {
            granularity,
            drain_reads: true,
            drain_writes: true,
        }]);
    }

    /// What a driver sends after it changed 2^`order` pages of a table of the offered kind.
    #[track_caller]
    pub(crate) fn invalidate_pages(&mut self, domain: u16, address: u64, order: u8) {
        let descriptor = self.page_invalidation(domain, address, order);
        self.submit(&[descriptor]);
    }

    /// The descriptor of [`invalidate_pages`](Self::invalidate_pages).
    pub(crate) fn page_invalidation(&self, domain: u16, address: u64, order: u8) -> Descriptor {
        if self.is_first_stage() {
            Descriptor::PasidIotlb {
                domain_id: DomainId::new(domain),
                pasid: Pasid::new(self.pasid).expect("20 bits"),
                granularity: PasidIotlbGranularity::Page {
                    address,
                    address_mask: order,
                    leaf_hint: false,
                },
            }
        } else {
            Descriptor::Iotlb {
                granularity: IotlbGranularity::Page {
                    domain_id: DomainId::new(domain),
                    address,
                    address_mask: order,
                    leaf_hint: false,
                },
                drain_reads: true,
                drain_writes: true,
            }
        }
    }
}

/// The context entry of legacy mode that says what a PASID entry says (§9.3, §9.6); a type that
/// legacy mode has not becomes the reserved one.
fn legacy_context(entry: &PasidEntry, widest: u64) -> LegacyContextEntry {
    let [q0, q1, ..] = *entry.quadwords();
    let (translation_type, width) = match q0 >> 6 & 7 {
        2 => (0, q0 >> 2 & 7),
        4 => (2, widest),
        _ if q0 & 1 == 0 => (0, 0),
        _ => (3, widest),
    };
    LegacyContextEntry::from_quadwords([
        q0 & !0xfff | translation_type << 2 | q0 & 3,
        (q1 & 0xffff) << 8 | width,
    ])
}

/// PASID-cache invalidation, PASID-selective.
pub(crate) fn pasid_cache(domain: u16, pasid: u32) -> Descriptor {
    Descriptor::PasidCache {
        granularity: PasidCacheGranularity::Pasid {
            domain_id: DomainId::new(domain),
            pasid: Pasid::new(pasid).expect("20 bits"),
        },
    }
}

/// An entry with quadwords changed.
pub(crate) fn changed(entry: &PasidEntry, change: impl FnOnce(&mut [u64; 8])) -> PasidEntry {
    let mut quadwords = *entry.quadwords();
    change(&mut quadwords);
    PasidEntry::from_quadwords(quadwords)
}
