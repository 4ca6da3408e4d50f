//! Breaking a guest's tables and putting them back; requests that ask for more than data.

use vtd_nest::arch::address::{Gpa, Iova};
use vtd_nest::arch::context::DirectoryOrder;
use vtd_nest::arch::descriptor::{
    ContextGranularity, Descriptor, IotlbGranularity, PasidCacheGranularity,
};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::TranslationTableMode;
use vtd_nest::paging::Rights;

use super::{D0, D1, Guest, ROOT};

/// A guest-physical page that no machine has.
pub(crate) const OUTSIDE: u64 = 0x7fff_f000;

/// Where the structures for one device and PASID are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Structures {
    /// The half of the root entry.
    pub(crate) root: u64,
    /// The context entry.
    pub(crate) context: u64,
    /// The directory entry.
    pub(crate) directory: u64,
    /// The PASID entry.
    pub(crate) entry: u64,
    /// What they held: root, context, directory, PASID entry.
    saved: ([u8; 8], [u8; 32], [u8; 8], [u8; 64]),
}

impl Guest {
    /// Where the structures for a device and PASID are, and what they hold now.
    pub(crate) fn structures(&mut self, source_id: SourceId, pasid: u32) -> Structures {
        let mut structures = Structures {
            root: self.root_entry_at(source_id),
            context: self.context_at(source_id),
            directory: self.directory_entry_at(source_id, pasid),
            entry: self.entry_at(source_id, pasid),
            saved: ([0; 8], [0; 32], [0; 8], [0; 64]),
        };
        self.read(structures.root, &mut structures.saved.0);
        self.read(structures.context, &mut structures.saved.1);
        self.read(structures.directory, &mut structures.saved.2);
        self.read(structures.entry, &mut structures.saved.3);
        structures
    }

    /// Puts back what the structures held, and invalidates everything.
    #[track_caller]
    pub(crate) fn restore(&mut self, structures: &Structures) {
        self.write(structures.root, &structures.saved.0);
        self.write(structures.context, &structures.saved.1);
        self.write(structures.directory, &structures.saved.2);
        self.write(structures.entry, &structures.saved.3);
        self.invalidate_everything();
    }

    /// Gives both devices the smallest directory there is, so that a look at all of it is short.
    #[track_caller]
    pub(crate) fn use_small_directories(&mut self) {
        for device in [D0, D1] {
            self.install_context(device, DirectoryOrder::SMALLEST);
            self.invalidate_context(device);
        }
    }

    /// Global invalidations of every cache that a table change can concern.
    #[track_caller]
    pub(crate) fn invalidate_everything(&mut self) {
        self.submit(&[
            Descriptor::ContextCache {
                granularity: ContextGranularity::Global,
            },
            Descriptor::PasidCache {
                granularity: PasidCacheGranularity::Global,
            },
            Descriptor::Iotlb {
                granularity: IotlbGranularity::Global,
                drain_reads: true,
                drain_writes: true,
            },
        ]);
    }

    /// Changes bits of a quadword: clears, then sets.
    pub(crate) fn change(&mut self, at: u64, clear: u64, set: u64) {
        let value = self.read_u64(at) & !clear | set;
        self.write_u64(at, value);
    }

    /// The first address bit that the guest's pointers must not have.
    pub(crate) fn beyond_width(&self) -> u64 {
        1 << self.vm.offer().features.host_address_width
    }

    /// The host makes a page of the machine read-only for devices.
    #[track_caller]
    pub(crate) fn host_makes_read_only(&mut self, page: u64) {
        let (lab, at) = (self.lab.clone(), Gpa::new(page));
        let (h, host) = (&*lab.hypervisor, self.host_of(at));
        let unmapped = self.vm.unmap_memory(h, &lab.units, at, 0x1000);
        unmapped.expect("the page is taken away");
        let mapped = self
            .vm
            .map_memory(h, &lab.units, at, host, 0x1000, Rights::READ);
        mapped.expect("the page is given back");
    }

    /// The guest's root table, at its usual place, is used again.
    pub(crate) fn use_usual_root(&mut self) {
        self.set_root(ROOT, TranslationTableMode::Scalable);
    }

    /// A device's read that asks for supervisor privilege or execution: whether data came.
    pub(crate) fn reads_as(
        &self,
        source_id: SourceId,
        tag: Option<u32>,
        iova: u64,
        privileged: bool,
        execute: bool,
    ) -> bool {
        let mut requester = self.requester(source_id, tag);
        requester.privileged = privileged;
        requester.execute = execute;
        let mut bytes = [0; 8];
        let hypervisor = &self.lab.hypervisor;
        hypervisor.dma_read(requester, Iova::new(iova), &mut bytes);
        bytes != [0; 8]
    }

    /// A legacy root table, in force, with one context: the device, translated by a second-stage
    /// table of the guest's width under domain-id 7. Gives the place of the context entry.
    pub(crate) fn use_legacy_table(&mut self, source_id: SourceId, table: u64) -> u64 {
        let root = self.legacy_root(source_id, table, 7);
        let contexts = self.read_u64(root + 16 * u64::from(source_id.bus())) & !0xfff;
        let context = contexts + 16 * u64::from(source_id.device_function());
        let width = self.width().field();
        self.change(context + 8, 7, width);
        self.set_root(root, TranslationTableMode::Legacy);
        context
    }
}
