//! Reading the guest's tables: from a device to the entries of its PASID tables.

use crate::arch::address::Gpa;
use crate::arch::id::Pasid;
use crate::mem::GuestMemory;
use crate::viommu::host::{Desired, HostState};
use crate::viommu::statistics::count;
use crate::viommu::tables::{GuestContext, TableError, TableFault, guest_binding, pasid_limit};
use crate::viommu::unit::{CachedContext, VirtualUnit};

use super::{DIRECTORY_PIECE, EntryFilter, Pass, Position, TABLE_ENTRIES};

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// The device's context entry, from the cache of context entries or from memory.
    pub(super) fn context_of(
        &mut self,
        memory: &impl GuestMemory,
        index: usize,
    ) -> Option<GuestContext> {
        let slot = self.devices.get(index)?;
        if let CachedContext::Read(context) = slot.context {
            return context;
        }
        let source_id = slot.source_id;
        let tables = self.tables;
        let context = match self.reader(memory, &tables).context(source_id) {
            Ok(context) => Some(context),
            Err((fault, fault_processing_disabled)) => {
                self.skip_table(TableError {
                    source_id,
                    pasid: Pasid::ZERO,
                    fault,
                    fault_processing_disabled,
                });
                None
            }
        };
        let pasid_end = match &context {
            Some(GuestContext::Scalable(context)) => {
                pasid_limit(context, self.pasid_bits_of(index))
            }
            // Of requests without PASID only.
            _ => 1,
        };
        if let Some(slot) = self.devices.get_mut(index) {
            slot.context = CachedContext::Read(context);
            slot.pasid_end = pasid_end;
        }
        context
    }

    pub(super) fn skip_table(&mut self, error: TableError) {
        count(&mut self.statistics.tables_skipped);
        log::debug!(
            "guest device {} PASID {}: not bound: {}",
            error.source_id,
            error.pasid,
            error.fault
        );
    }

    pub(super) fn pasid_bits_of(&self, index: usize) -> u8 {
        let device = self.devices.get(index).map_or(0, |slot| slot.pasid_bits());
        self.pasid_bits().min(device)
    }

    pub(super) fn enter_device(&mut self, memory: &impl GuestMemory, pass: &mut Pass, from: usize) {
        let next = match pass.entries {
            EntryFilter::Pasid { pasid, .. } => self.next_reaching(pass.devices, pasid, from),
            _ => self.next_selected(pass.devices, from),
        };
        let Some(index) = next else {
            match pass.entries {
                EntryFilter::Pasid { .. } => Self::leave_store(pass),
                _ => pass.position = Position::Default(0),
            }
            return;
        };
        pass.position = Position::Device(index.saturating_add(1));
        if let EntryFilter::Pasid { domain_id, pasid } = pass.entries {
            pass.change = self.check_pasid(memory, pass, index, domain_id, pasid);
            return;
        }
        if !self.translating {
            return;
        }
        if let Some(GuestContext::Scalable(context)) = self.context_of(memory, index) {
            pass.device = index;
            pass.directory = context.pasid_directory;
            pass.limit = pasid_limit(&context, self.pasid_bits_of(index));
            pass.position = Position::Directory(0);
        }
    }

    pub(super) fn leave_device(pass: &mut Pass) {
        pass.position = Position::Device(pass.device.saturating_add(1));
    }

    /// Reads one piece of the directory, never past the part that counts.
    pub(super) fn read_directory(
        &mut self,
        memory: &impl GuestMemory,
        pass: &mut Pass,
        first: u32,
    ) {
        let entries = pass.limit.div_ceil(TABLE_ENTRIES);
        if first >= entries || !self.is_selected(pass.devices, pass.device) {
            return Self::leave_device(pass);
        }
        let len = entries.saturating_sub(first).min(DIRECTORY_PIECE) as usize * 8;
        self.pages.directory = [0; 4096];
        let read = match (
            pass.directory.checked_add(u64::from(first) * 8),
            self.pages.directory.get_mut(..len),
        ) {
            (Some(at), Some(into)) => memory.read(at, into).is_ok(),
            _ => false,
        };
        if read {
            pass.position = Position::Table { first, next: first };
        } else {
            self.skip_page(pass, first.saturating_mul(TABLE_ENTRIES), |at| {
                TableFault::DirectoryUnreadable(at)
            });
            pass.position = Position::Directory(first.saturating_add(DIRECTORY_PIECE));
        }
    }

    pub(super) fn skip_page(&mut self, pass: &Pass, pasid: u32, fault: impl Fn(Gpa) -> TableFault) {
        if let Some(slot) = self.devices.get(pass.device) {
            self.skip_table(TableError {
                source_id: slot.source_id,
                pasid: Pasid::from_field(u64::from(pasid)),
                fault: fault(pass.directory),
                fault_processing_disabled: false,
            });
        }
    }

    /// Finds the next present directory entry of the piece and reads its table.
    pub(super) fn read_table(
        &mut self,
        memory: &impl GuestMemory,
        pass: &mut Pass,
        first: u32,
        next: u32,
    ) {
        let end = pass
            .limit
            .div_ceil(TABLE_ENTRIES)
            .min(first.saturating_add(DIRECTORY_PIECE));
        for index in next..end {
            let entry = self.pages.directory_entry(index.saturating_sub(first));
            if !entry.is_present() {
                continue;
            }
            pass.position = Position::Table {
                first,
                next: index.saturating_add(1),
            };
            let pasid = index.saturating_mul(TABLE_ENTRIES);
            match entry.decode::<Gpa>(&self.tables) {
                Err(fault) => self.skip_page(pass, pasid, |_| TableFault::Directory(fault)),
                Ok(at) if memory.read(at, &mut self.pages.table).is_err() => {
                    self.skip_page(pass, pasid, |_| TableFault::EntryUnreadable(at));
                }
                Ok(_) => {
                    pass.position = Position::Entries {
                        first,
                        index,
                        next: 0,
                    };
                }
            }
            return;
        }
        pass.position = Position::Directory(first.saturating_add(DIRECTORY_PIECE));
    }

    /// Finds the next entry of the copied table that is in scope and not bound as it reads.
    pub(super) fn scan_entries(&mut self, pass: &mut Pass, first: u32, index: u32, next: u32) {
        for within in next..TABLE_ENTRIES {
            let pasid = index.saturating_mul(TABLE_ENTRIES).saturating_add(within);
            if pasid >= pass.limit || !self.is_selected(pass.devices, pass.device) {
                break;
            }
            let entry = self.pages.entry(within);
            if !entry.is_present() || !pass.entries.covers(entry.domain_id()) {
                continue;
            }
            let pasid = Pasid::from_field(u64::from(pasid));
            let binding = match guest_binding(&entry, &self.tables) {
                Ok(binding) => binding,
                Err(fault) => {
                    self.skip_page(pass, pasid.as_u32(), |_| TableFault::Entry(fault));
                    continue;
                }
            };
            pass.change = self.difference(
                pass.generation,
                pass.device,
                pasid,
                *entry.quadwords(),
                Desired::Guest(binding),
            );
            if pass.change.is_some() {
                pass.position = Position::Entries {
                    first,
                    index,
                    next: within.saturating_add(1),
                };
                return;
            }
        }
        pass.position = Position::Table {
            first,
            next: index.saturating_add(1),
        };
    }
}
