//! Page requests of devices, their queue, and the responses (§7.4 to §7.10).

use std::collections::VecDeque;

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::capability::ExtendedCapabilityField as Ecap;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::{Pasid, SourceId};

use crate::bits::{self, bit, field};
use crate::cache::{Block, Blocked, CachedPasid, Kind};
use crate::dma::{Access, Request};
use crate::fault::{Fault, Origin};
use crate::translate::stop;
use crate::unit::{Due, ModelUnit, Unit};
use crate::violation::Violation;

/// A page request message (§7.4.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// The device.
    pub source_id: SourceId,
    /// The PASID, if the access that faulted had one.
    pub pasid: Option<Pasid>,
    /// The page's address; bits 11:0 are not sent.
    pub address: Iova,
    /// Asks for read access.
    pub read: bool,
    /// Asks for write access.
    pub write: bool,
    /// Asks for execute access (with a PASID, and reads only).
    pub execute: bool,
    /// Supervisor privilege (with a PASID only).
    pub privileged: bool,
    /// The last one of its group (`LPIG`). Asking for nothing, it is a stop marker.
    pub last: bool,
    /// The group index, 9 bits.
    pub group: u16,
}

impl PageRequest {
    /// A request of its own for reading, or for reading and writing.
    pub fn new(
        source_id: SourceId,
        pasid: Option<Pasid>,
        address: Iova,
        write: bool,
        group: u16,
    ) -> Self {
        Self {
            source_id,
            pasid,
            address,
            read: true,
            write,
            execute: false,
            privileged: false,
            last: true,
            group,
        }
    }

    /// The stop marker that a device sends when it is done with a PASID.
    pub fn stop_marker(source_id: SourceId, pasid: Pasid) -> Self {
        Self {
            read: false,
            ..Self::new(source_id, Some(pasid), Iova::new(0), false, 0)
        }
    }

    fn is_stop_marker(&self) -> bool {
        self.last && !self.read && !self.write
    }

    /// As the unit's tables are asked about it.
    fn as_request(&self) -> Request {
        let access = if self.write {
            Access::Write
        } else {
            Access::Read
        };
        Request {
            privileged: self.privileged,
            execute: self.execute,
            ..Request::new(self.source_id, self.pasid, self.address, access)
        }
    }

    /// The descriptor. What is undefined in it is all ones.
    fn words(&self) -> [u64; 4] {
        let pasid = self.pasid.map_or(0xf_ffff, |pasid| pasid.as_u32());
        let with_pasid = self.pasid.is_some();
        let group = if self.read || self.write {
            u64::from(self.group & 0x1ff)
        } else {
            0x1ff
        };
        [
            1 | u64::from(with_pasid) << 8
                | u64::from(self.source_id.as_u16()) << 16
                | u64::from(pasid) << 32
                | u64::from(with_pasid && self.read && self.execute) << 52
                | u64::from(with_pasid && self.privileged) << 53,
            u64::from(self.read)
                | u64::from(self.write) << 1
                | u64::from(self.last) << 2
                | group << 3
                | bits::page(self.address.as_u64()),
            0,
            0,
        ]
    }
}

/// What became of a page request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageRequestOutcome {
    /// It arrived; what follows is not due yet.
    Received,
    /// It is in the queue.
    Queued,
    /// A fault stopped it: answered with [`ResponseCode::InvalidRequest`] if it was the last of
    /// its group. `Fault::access` is the strongest access that it asked for.
    Fault(Fault),
    /// The queue was full, or `PRO` was set before: answered with [`ResponseCode::Success`] if it
    /// was the last of its group, and dropped.
    Overflow,
    /// The unit does not take page requests, or translation is off: dropped without an answer. (The
    /// specification does not say what happens while translation is off.)
    Unsupported,
    /// The queue is no memory: dropped without an answer.
    Lost,
}

/// The code of a page group response (Table 32).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResponseCode {
    /// All pages are there.
    Success,
    /// Some page is not.
    InvalidRequest,
    /// The device is to stop sending page requests.
    Failure,
    /// Not defined.
    Reserved(u8),
}

impl ResponseCode {
    fn from_bits(bits: u64) -> Self {
        match bits as u8 {
            0 => Self::Success,
            1 => Self::InvalidRequest,
            15 => Self::Failure,
            other => Self::Reserved(other),
        }
    }
}

/// A page group response that the unit sent to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageResponse {
    /// The device.
    pub source_id: SourceId,
    /// The PASID, if the response has one.
    pub pasid: Option<Pasid>,
    /// The group index.
    pub group: u16,
    /// The code.
    pub code: ResponseCode,
    /// The unit made it itself (Table 31); otherwise software did.
    pub automatic: bool,
}

impl PageResponse {
    /// Whether it answers the group that a request belongs to.
    pub(crate) fn is_for(&self, request: &PageRequest) -> bool {
        (self.source_id, self.pasid, self.group)
            == (request.source_id, request.pasid, request.group)
    }
}

/// A page request on the way into the queue.
struct Received {
    request: PageRequest,
    due: Due,
    /// How many arrived before it.
    number: u64,
}

#[derive(Default)]
pub(crate) struct PageRequests {
    received: VecDeque<Received>,
    /// How many arrived.
    count: u64,
    /// How many had arrived when a device last completed an invalidation.
    ahead_of_completion: u64,
    /// The last requests of queued groups, which software has to answer.
    unanswered: Vec<PageRequest>,
    responses: Vec<PageResponse>,
    /// PQA was written.
    is_set: bool,
}

/// PRS.
const PENDING: u32 = 1;
const OVERFLOW: u32 = 1 << 1;

/// Dwords of PQH, PQT and PQA.
const HEAD: usize = 0;
const TAIL: usize = 2;
const ADDRESS: usize = 4;

const DESCRIPTOR_BYTES: u32 = 32;

impl Unit {
    // ---- registers ----

    fn page_request_queue_bytes(&self) -> u32 {
        4096 << (self.registers.page_request_queue[ADDRESS] & 7)
    }

    /// A write into PQH, PQT or PQA, reserved bits looked at; `index` counts dwords from PQH.
    pub(crate) fn write_page_request_queue(&mut self, index: usize, value: u32) {
        let size = self.page_request_queue_bytes();
        let (old, tail) = (
            self.registers.page_request_queue[HEAD],
            self.registers.page_request_queue[TAIL],
        );
        let behind = |offset: u32| offset.wrapping_sub(old) & (size - 1);
        match index {
            // 0 begins anew.
            HEAD if value != 0 && (value >= size || behind(value) > behind(tail)) => {
                self.violation(Violation::PageRequestHeadMisplaced {
                    old,
                    new: value,
                    tail,
                });
            }
            TAIL if value != 0 => self.violation(Violation::PageRequestTailWritten { value }),
            ADDRESS => self.page_requests.is_set = true,
            _ => {}
        }
        self.registers.page_request_queue[index] = value;
    }

    /// A write into PRS.
    pub(crate) fn clear_page_request_status(&mut self, value: u32) {
        self.registers.page_request_status &= !value;
        if self.registers.page_request_status == 0 {
            self.registers.page_request_event.clear_pending();
        }
    }

    /// Sets PPR or PRO: an event, unless one of them was set (§7.5).
    fn set_page_request_status(&mut self, status: u32) {
        let was_quiet = self.registers.page_request_status == 0;
        self.registers.page_request_status |= status;
        if was_quiet {
            self.messages
                .extend(self.registers.page_request_event.raise());
        }
    }

    // ---- requests ----

    /// A page request arrives. The outcome is known if it is due at once.
    fn receive(&mut self, request: PageRequest) -> PageRequestOutcome {
        if !self.config.has(Ecap::PAGE_REQUESTS) || !self.registers.translation_enabled() {
            return PageRequestOutcome::Unsupported;
        }
        self.devices.of(request.source_id).send(request);
        let now = self.clock.now();
        let due = Due::from_pace(self.config.page_request_pace, now);
        if self.page_requests.received.is_empty() && due.is_over(now, false) {
            return self.accept(request);
        }
        let number = self.page_requests.count;
        self.page_requests.count += 1;
        self.page_requests.received.push_back(Received {
            request,
            due,
            number,
        });
        PageRequestOutcome::Received
    }

    /// Accepts what is due.
    pub(crate) fn accept_page_requests(&mut self, manual: bool) {
        let now = self.clock.now();
        while let Some(received) = self
            .page_requests
            .received
            .pop_front_if(|received| received.due.is_over(now, manual))
        {
            self.accept(received.request);
        }
    }

    /// A device completed an invalidation: what it sent before has arrived (§7.7).
    pub(crate) fn note_invalidation_completion(&mut self) {
        self.page_requests.ahead_of_completion = self.page_requests.count;
    }

    /// PD=1: the wait completes behind what arrived ahead of the last completion (§7.7).
    pub(crate) fn drain_page_requests(&mut self) {
        let limit = self.page_requests.ahead_of_completion;
        while let Some(received) = self
            .page_requests
            .received
            .pop_front_if(|received| received.number < limit)
        {
            self.accept(received.request);
        }
    }

    /// Checks a request and writes it to the queue (§7.4.1).
    fn accept(&mut self, request: PageRequest) -> PageRequestOutcome {
        let (pasid, entry) = match self.check_page_request(&request) {
            Ok(found) => found,
            Err(blocked) => {
                let fault = self.block_from(Origin::PageRequest, &request.as_request(), blocked);
                self.answer_unqueued(&request, ResponseCode::InvalidRequest);
                return PageRequestOutcome::Fault(fault);
            }
        };
        if !self.page_requests.is_set {
            self.violation(Violation::PageRequestQueueNotSet);
            return PageRequestOutcome::Lost;
        }
        let size = self.page_request_queue_bytes();
        let head = self.registers.page_request_queue[HEAD];
        let tail = self.registers.page_request_queue[TAIL] & (size - 1);
        let next = (tail + DESCRIPTOR_BYTES) & (size - 1);
        if next == head {
            self.set_page_request_status(OVERFLOW);
        }
        if self.registers.page_request_status & OVERFLOW != 0 {
            self.answer_unqueued(&request, ResponseCode::Success);
            return PageRequestOutcome::Overflow;
        }
        self.invalidate_for(&request, pasid, &entry);
        let base = u64::from(self.registers.page_request_queue[ADDRESS])
            | u64::from(self.registers.page_request_queue[ADDRESS + 1]) << 32;
        let address = bits::page(base) + u64::from(tail);
        let bytes: Vec<u8> = request
            .words()
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect();
        if !self.memory.device_write(address, &bytes) {
            self.violation(Violation::PageRequestQueueAddress { address });
            return PageRequestOutcome::Lost;
        }
        self.registers.page_request_queue[TAIL] = next;
        if request.last && !request.is_stop_marker() {
            self.page_requests.unanswered.push(request);
        }
        self.set_page_request_status(PENDING);
        PageRequestOutcome::Queued
    }

    /// The tables on the way of a page request (Table 30): its PASID or RID_PASID, and the entry.
    fn check_page_request(&mut self, request: &PageRequest) -> Result<(u32, CachedPasid), Blocked> {
        let has = |feature| self.config.has(feature);
        let reason = match self.registers.table_mode() {
            0 => Some(FaultReason::PageRequestInLegacyMode),
            1 if has(Ecap::SCALABLE_MODE) => None,
            3 if has(Ecap::ABORT_DMA_MODE) => Some(FaultReason::AbortDmaMode),
            _ => Some(FaultReason::RootTableAddressInvalid),
        };
        if let Some(reason) = reason {
            return Err(stop(reason, false));
        }
        let source_id = request.source_id.as_u16();
        let context = self.scalable_context(source_id)?;
        let pasid = self.check_context(&context, &request.as_request(), Origin::PageRequest)?;
        let entry = self.pasid_entry(source_id, pasid, &context)?;
        Ok((pasid, entry))
    }

    /// Table 27: what the unit's own caches hold for the page goes.
    fn invalidate_for(&mut self, request: &PageRequest, pasid: u32, entry: &CachedPasid) {
        let block = Block::around(request.address.as_u64(), 12);
        let domain = entry.domain();
        match entry.kind() {
            Kind::First => self
                .caches
                .drop_iotlb_pages_of_pasid(domain, pasid, block, false),
            Kind::Nested => self.caches.drop_iotlb_of_domain(domain),
            _ => self.caches.drop_iotlb_pages(domain, block, false),
        }
    }

    /// Table 31: the unit's own answer to a request that is not queued.
    fn answer_unqueued(&mut self, request: &PageRequest, code: ResponseCode) {
        if request.is_stop_marker() {
            if !self.config.has(Ecap::STOP_MARKERS) {
                self.violation(Violation::StopMarkerLost {
                    source_id: request.source_id,
                });
            }
        } else if request.last {
            self.send_response(PageResponse {
                source_id: request.source_id,
                pasid: request.pasid,
                group: request.group,
                code,
                automatic: true,
            });
        }
    }

    // ---- responses ----

    fn send_response(&mut self, response: PageResponse) {
        self.devices.of(response.source_id).answer(&response);
        self.page_requests.responses.push(response);
    }

    /// Executes a page group response descriptor (type 9).
    pub(crate) fn respond(&mut self, [q0, q1, ..]: [u64; 4]) {
        let pasid = bit(q0, 4).then_some(field(q0, 51, 32) as u32);
        let response = PageResponse {
            source_id: SourceId::from_u16(field(q0, 31, 16) as u16),
            pasid: pasid.and_then(Pasid::new),
            group: field(q1, 11, 3) as u16,
            code: ResponseCode::from_bits(field(q0, 15, 12)),
            automatic: false,
        };
        if let ResponseCode::Reserved(code) = response.code {
            self.violation(Violation::PageResponseCode { code });
        }
        let unanswered = &mut self.page_requests.unanswered;
        match unanswered
            .iter()
            .position(|request| response.is_for(request))
        {
            Some(index) => {
                unanswered.remove(index);
            }
            None => self.violation(Violation::PageResponseUnexpected {
                source_id: response.source_id,
                pasid,
                group: response.group,
            }),
        }
        self.send_response(response);
    }
}

impl ModelUnit {
    /// A device sends a page request.
    pub fn page_request(&self, request: &PageRequest) -> PageRequestOutcome {
        let mut unit = self.0.borrow_mut();
        unit.advance(false);
        unit.receive(*request)
    }

    /// The page group responses sent to devices since the last call, the unit's own included.
    pub fn take_page_responses(&self) -> Vec<PageResponse> {
        std::mem::take(&mut self.0.borrow_mut().page_requests.responses)
    }

    /// The last requests of the groups that were queued and that software has not answered yet.
    pub fn unanswered_page_requests(&self) -> Vec<PageRequest> {
        self.0.borrow().page_requests.unanswered.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_their_fields_and_ones_where_nothing_is_defined() {
        let plain = PageRequest::new(
            SourceId::from_u16(0x1234),
            Pasid::new(0x5_6789),
            Iova::new(0xffff_8000_1234_5678),
            false,
            0x0aa,
        );
        let all = PageRequest {
            write: true,
            execute: true,
            privileged: true,
            ..plain
        };
        let without = PageRequest {
            pasid: None,
            last: false,
            ..all
        };
        let stop = PageRequest::stop_marker(plain.source_id, Pasid::new(7).unwrap());
        for (request, low, high) in [
            (plain, 0x0005_6789_1234_0101, 0xffff_8000_1234_5555),
            (all, 0x0035_6789_1234_0101, 0xffff_8000_1234_5557),
            (without, 0x000f_ffff_1234_0001, 0xffff_8000_1234_5553),
            (stop, 0x0000_0007_1234_0101, 0x0000_0000_0000_0ffc),
        ] {
            assert_eq!(request.words(), [low, high, 0, 0], "{request:x?}");
        }
    }
}
