//! A machine's memory: its second stage, what may never be in it, and the guest seen through it.

use heapless::Vec;

use crate::arch::address::{Gpa, Hpa, PAGE_SIZE_BYTES};
use crate::mem::{GuestMemory, GuestMemoryError, HostMemory};
use crate::paging::SecondStage;

/// A range of host-physical addresses, half open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhysicalRange {
    /// First address.
    pub start: Hpa,
    /// Address after the last one.
    pub end: Hpa,
}

impl PhysicalRange {
    /// The range of `len_bytes` from `start` on, cut at the end of the address space.
    pub const fn new(start: Hpa, len_bytes: u64) -> Self {
        Self {
            start,
            end: Hpa::new(start.as_u64().saturating_add(len_bytes)),
        }
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Most ranges that can be protected.
pub const PROTECTED_RANGES: usize = 16;

/// What no machine may ever reach by DMA: remapping-unit registers, IOAPIC, local APIC, ECAM, the
/// hypervisor's own memory. (0xFEEx_xxxx is refused by the tables themselves.)
#[derive(Clone, Debug, Default)]
pub struct ProtectedRanges {
    ranges: Vec<PhysicalRange, PROTECTED_RANGES>,
}

/// All [`PROTECTED_RANGES`] places are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProtectedRangesFull;

impl ProtectedRanges {
    /// No range yet.
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Adds a range.
    ///
    /// # Errors
    ///
    /// [`ProtectedRangesFull`].
    pub fn add(&mut self, range: PhysicalRange) -> Result<(), ProtectedRangesFull> {
        self.ranges.push(range).map_err(|_| ProtectedRangesFull)
    }

    /// The protected range that a range overlaps.
    pub fn overlapped_by(&self, range: &PhysicalRange) -> Option<&PhysicalRange> {
        self.ranges
            .iter()
            .find(|protected| protected.overlaps(range))
    }
}

/// A guest's memory as its second stage defines it: the one truth for hardware and software.
#[derive(Debug)]
pub struct MachineMemory<'a, H> {
    pub(super) h: &'a H,
    pub(super) second_stage: &'a SecondStage<Gpa>,
}

impl<H> Clone for MachineMemory<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H> Copy for MachineMemory<'_, H> {}

impl<'a, H: HostMemory> MachineMemory<'a, H> {
    /// The memory behind a second stage.
    pub const fn new(h: &'a H, second_stage: &'a SecondStage<Gpa>) -> Self {
        Self { h, second_stage }
    }

    /// Calls `copy` with host address, offset and length of each piece of a range that lies in one
    /// page, as long as the page grants the right asked for.
    fn each_page(
        &self,
        at: Gpa,
        len: usize,
        write: bool,
        mut copy: impl FnMut(Hpa, usize, usize),
    ) -> Result<(), GuestMemoryError> {
        let mut done = 0usize;
        while done < len {
            let refused = GuestMemoryError {
                address: at,
                len_bytes: len as u64,
            };
            let current = at.checked_add(done as u64).ok_or(refused)?;
            let mapping = self
                .second_stage
                .translate(self.h, current)
                .ok_or(refused)?;
            let granted = if write {
                mapping.rights.write
            } else {
                mapping.rights.read
            };
            if !granted {
                return Err(refused);
            }
            let in_page = (PAGE_SIZE_BYTES - current.page_offset()) as usize;
            let piece = in_page.min(len - done);
            copy(mapping.output, done, piece);
            done += piece;
        }
        Ok(())
    }
}

impl<H: HostMemory> GuestMemory for MachineMemory<'_, H> {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), GuestMemoryError> {
        let h = self.h;
        self.each_page(at, into.len(), false, |host, offset, len| {
            if let Some(piece) = into.get_mut(offset..).and_then(|rest| rest.get_mut(..len)) {
                h.copy_from(host, piece);
            }
        })
    }

    fn compare_exchange(&self, at: Gpa, current: u64, new: u64) -> Result<bool, GuestMemoryError> {
        // Aligned down, it lies in one page.
        let at = Gpa::new(at.as_u64() & !7);
        let mut is_stored = false;
        self.each_page(at, 8, true, |host, _, _| {
            is_stored = self.h.compare_exchange64(host, current, new) == current;
        })?;
        Ok(is_stored)
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), GuestMemoryError> {
        let h = self.h;
        self.each_page(at, from.len(), true, |host, offset, len| {
            if let Some(piece) = from.get(offset..).and_then(|rest| rest.get(..len)) {
                h.copy_to(host, piece);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::address::AddressWidth;
    use crate::mem::Owner;
    use crate::mem::testing::TestHypervisor;
    use crate::paging::{Rights, SecondStageConfig};

    #[test]
    fn protected_ranges_are_found_by_any_shared_byte() {
        let mut protected = ProtectedRanges::new();
        let registers = PhysicalRange::new(Hpa::new(0xfed9_0000), 0x1000);
        protected.add(registers).unwrap();
        for (start, len, hit) in [
            (0xfed9_0000, 1, true),
            (0xfed8_f000, 0x1000, false),
            (0xfed8_f000, 0x1001, true),
            (0xfed9_0fff, 1, true),
            (0xfed9_1000, 0x1000, false),
            (0, u64::MAX, true),
        ] {
            let range = PhysicalRange::new(Hpa::new(start), len);
            assert_eq!(protected.overlapped_by(&range).is_some(), hit, "{range:?}");
        }
    }

    /// Guest pages 0 and 2 lie apart on the host, page 1 is read-only, page 4 write-only; there is
    /// no page 3.
    fn guest(h: &TestHypervisor) -> SecondStage<Gpa> {
        let config = SecondStageConfig {
            width: AddressWidth::Bits48,
            input_bits: 48,
            output_bits: 46,
            leaves_2mib: true,
            leaves_1gib: false,
            flush: false,
        };
        let mut memory = SecondStage::new(h, Owner::new(1), config).unwrap();
        for (guest, host, rights) in [
            (0x0000, 0x9000, Rights::READ_WRITE),
            (0x1000, 0x5000, Rights::READ),
            (0x2000, 0x7000, Rights::READ_WRITE),
            (0x4000, 0x3000, Rights::WRITE),
        ] {
            memory
                .map(h, Gpa::new(guest), Hpa::new(host), 0x1000, rights)
                .unwrap();
        }
        memory
    }

    // G10
    #[test]
    fn what_crosses_a_page_goes_on_in_the_guests_next_page() {
        let h = TestHypervisor::new(8);
        let second_stage = guest(&h);
        let memory = MachineMemory::new(&h, &second_stage);
        h.write64(Hpa::new(0x9ff8), 0x0123_4567_89ab_cdef);
        h.write64(Hpa::new(0x5000), 0xfedc_ba98_7654_3210);
        let mut bytes = [0; 8];
        memory.read(Gpa::new(0xffc), &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 0x7654_3210_0123_4567);
    }

    // G10: nothing but the guest's own memory, with the rights that its devices have.
    #[test]
    fn what_the_second_stage_denies_is_refused_and_nothing_is_stored() {
        let h = TestHypervisor::new(8);
        let second_stage = guest(&h);
        let memory = MachineMemory::new(&h, &second_stage);
        let stores = h.stores.get();
        for at in [0x1000, 0x1ffc, 0x3000, 1 << 32, 1 << 48, u64::MAX - 7] {
            assert!(memory.write(Gpa::new(at), &[0; 4]).is_err(), "{at:#x}");
        }
        assert_eq!(h.stores.get(), stores);
        let mut bytes = [0; 4];
        for at in [0x3000, 0x4000, 0x2ffe, u64::MAX - 1] {
            assert!(memory.read(Gpa::new(at), &mut bytes).is_err(), "{at:#x}");
        }
        memory.write(Gpa::new(0x2ffc), &[1, 2, 3, 4]).unwrap();
        assert_eq!(h.read64(Hpa::new(0x7ff8)) >> 32, 0x0403_0201);
        memory.read(Gpa::new(0x1ffc), &mut bytes).unwrap();
    }

    #[test]
    fn protected_ranges_are_limited() {
        let mut protected = ProtectedRanges::new();
        for page in 0..PROTECTED_RANGES as u64 {
            protected
                .add(PhysicalRange::new(Hpa::new(page << 12), 1))
                .unwrap();
        }
        assert_eq!(
            protected.add(PhysicalRange::new(Hpa::new(0), 1)),
            Err(ProtectedRangesFull)
        );
    }
}
