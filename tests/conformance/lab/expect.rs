//! What a device's DMA shows: pages carry stamps, and a request is judged by the data it moves and
//! by the record that the guest finds.

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::SourceId;

use super::{Guest, GuestFault};
use crate::bench::Access;

/// The top of each stamp: the machine's number and the page's address below.
const STAMP: u64 = 0xda7a << 48;
/// What blocked writes try to put into memory.
const POISON: u64 = 0xbad0_bad0_bad0_bad0;
/// Where in a page a write is tried.
const WRITE_OFFSET: u64 = 16;

impl Guest {
    /// A page with a stamp that tells it from every other page of every machine.
    pub(crate) fn data_page(&mut self) -> u64 {
        let page = self.page();
        self.stamp(page);
        page
    }

    /// Puts a stamp into a page that is there.
    pub(crate) fn stamp(&mut self, page: u64) {
        self.write_u64(page, self.stamp_of(page));
        self.data_pages.push(page);
    }

    fn stamp_of(&self, page: u64) -> u64 {
        STAMP | u64::from(self.number()) << 40 | page
    }

    /// The page whose stamp a device reads at an address; `None` if it reads no stamp.
    #[track_caller]
    pub(crate) fn reached(&self, source_id: SourceId, tag: Option<u32>, iova: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        let requester = self.requester(source_id, tag);
        self.lab
            .hypervisor
            .dma_read(requester, Iova::new(iova), &mut bytes);
        stamped_page(u64::from_le_bytes(bytes), self.number())
    }

    /// A device's read at an address gives the page's stamp.
    #[track_caller]
    pub(crate) fn expect_reaches(
        &mut self,
        source_id: SourceId,
        tag: Option<u32>,
        iova: u64,
        page: u64,
    ) {
        let reached = self.reached(source_id, tag, iova);
        if reached != Some(page) {
            let faults = self.take_faults();
            panic!(
                "{source_id} {tag:?} at {iova:#x} reads page {reached:x?}, not {page:#x}; {faults:x?}"
            );
        }
    }

    /// A device's write at an address arrives in the page.
    #[track_caller]
    pub(crate) fn expect_writes_reach(
        &mut self,
        source_id: SourceId,
        tag: Option<u32>,
        iova: u64,
        page: u64,
    ) {
        let value = 0x3417_e000_0000_0000 | iova >> 12;
        let (requester, at) = (
            self.requester(source_id, tag),
            Iova::new(iova + WRITE_OFFSET),
        );
        self.write_u64(page + WRITE_OFFSET, 0);
        self.lab
            .hypervisor
            .dma_write(requester, at, &value.to_le_bytes());
        let arrived = self.read_u64(page + WRITE_OFFSET);
        if arrived != value {
            let faults = self.take_faults();
            panic!(
                "{source_id} {tag:?} writes at {iova:#x}: {page:#x} holds {arrived:#x}; {faults:x?}"
            );
        }
    }

    /// Tries an access: whether data moved. Records stay to be read.
    #[track_caller]
    pub(crate) fn gets_through(
        &self,
        source_id: SourceId,
        tag: Option<u32>,
        iova: u64,
        access: Access,
    ) -> bool {
        match access {
            Access::Read => self.reached(source_id, tag, iova).is_some(),
            Access::Write => {
                let (requester, at) = (
                    self.requester(source_id, tag),
                    Iova::new(iova + WRITE_OFFSET),
                );
                self.lab
                    .hypervisor
                    .dma_write(requester, at, &POISON.to_le_bytes());
                let mut pages = self.data_pages.iter();
                pages.any(|page| self.read_u64(page + WRITE_OFFSET) == POISON)
            }
        }
    }

    /// A device's read is blocked, and the guest finds one record of it, with this reason.
    #[track_caller]
    pub(crate) fn expect_blocked(
        &mut self,
        source_id: SourceId,
        tag: Option<u32>,
        iova: u64,
        reason: FaultReason,
    ) {
        self.expect_access_blocked(source_id, tag, iova, Access::Read, reason);
    }

    /// As [`expect_blocked`](Self::expect_blocked), for either access. A guest in legacy mode
    /// finds the number that stands there for the reason.
    #[track_caller]
    pub(crate) fn expect_access_blocked(
        &mut self,
        source_id: SourceId,
        tag: Option<u32>,
        iova: u64,
        access: Access,
        reason: FaultReason,
    ) {
        self.take_faults();
        assert!(
            !self.gets_through(source_id, tag, iova, access),
            "{access:?} by {source_id} {tag:?} at {iova:#x} is not blocked"
        );
        let taken = self.take_faults();
        let write = access == Access::Write;
        let reason = self.shown(reason, write);
        let expected = GuestFault {
            reason,
            source_id,
            pasid: tag,
            address: Iova::new(iova & !0xfff),
            write,
        };
        match taken.faults.as_slice() {
            // A request without PASID may be recorded with the PASID that its context gives it.
            [fault]
                if (GuestFault {
                    pasid: fault.pasid.filter(|pasid| tag.is_some() || *pasid != 0),
                    ..*fault
                }) == expected => {}
            other => panic!("the guest finds {other:x?}, not {expected:x?}"),
        }
    }

    /// A device's access moves no data; whatever is recorded is dropped.
    #[track_caller]
    pub(crate) fn expect_no_data(&mut self, source_id: SourceId, tag: Option<u32>, iova: u64) {
        for access in [Access::Read, Access::Write] {
            assert!(
                !self.gets_through(source_id, tag, iova, access),
                "{access:?} by {source_id} {tag:?} at {iova:#x} is not blocked"
            );
        }
        self.take_faults();
    }

    /// Nothing that the architecture forbids has been done.
    #[track_caller]
    pub(crate) fn finish(self) {
        self.lab.expect_no_violations();
    }
}

/// The page of a machine whose stamp a device has read; `None` if it is no stamp.
#[track_caller]
pub(super) fn stamped_page(value: u64, number: u16) -> Option<u64> {
    if value >> 48 != STAMP >> 48 {
        return None;
    }
    assert_eq!(
        value >> 40 & 0xff,
        u64::from(number),
        "the device reads another machine's memory"
    );
    Some(value & 0xff_ffff_ffff)
}
