//! Devices with a translation cache of their own, and the invalidations sent to it (§4.1, §4.3).

use std::collections::BTreeMap;

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::ExtendedCapabilityField as Ecap;
use vtd_nest::arch::id::{Pasid, SourceId};

use crate::ats::{CompletionStatus, TranslationCompletion, TranslationData};
use crate::bits::{self, bit, field};
use crate::cache::Block;
use crate::dma::{Access, Request};
use crate::page_request::{PageRequest, PageResponse, ResponseCode};
use crate::unit::{ModelUnit, Unit};
use crate::violation::Violation;

/// What a device does with its device-TLB. Whether it answers invalidations at all is another
/// matter: [`ModelUnit::set_device_silent`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DeviceTlbMode {
    /// Keeps everything until an invalidation that covers it, and only what that covers goes.
    #[default]
    Hoarder,
    /// As [`Hoarder`](Self::Hoarder), and asks at once again for what an invalidation took. What
    /// the unit's caches still hold then is back in the device-TLB: software has to empty the
    /// unit's caches first (§6.5.2.5).
    Refilling,
    /// Lies: says that invalidations are done and keeps everything.
    KeepsInvalidated,
    /// Keeps nothing.
    None,
}

/// A translation that a device holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceTlbEntry {
    /// The PASID of the requests that it is for, if they have one.
    pub pasid: Option<Pasid>,
    /// For supervisor requests, or else for user requests.
    pub privileged: bool,
    /// The first untranslated address.
    pub first: Iova,
    /// The last one, inclusive.
    pub last: Iova,
    /// The host address of `first`.
    pub host: Hpa,
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed.
    pub write: bool,
    /// Asked for reads only: that writes are not allowed says nothing.
    pub no_write: bool,
    /// Only untranslated requests may go to these addresses.
    pub untranslated_only: bool,
}

impl DeviceTlbEntry {
    fn block(&self) -> Block {
        Block {
            first: self.first.as_u64(),
            last: self.last.as_u64(),
        }
    }

    /// The part from `first` to `last`, which lies within the entry.
    fn part(&self, first: u64, last: u64) -> Self {
        let host = self.host.as_u64() + (first - self.first.as_u64());
        Self {
            first: Iova::new(first),
            last: Iova::new(last),
            host: Hpa::new(if self.untranslated_only { 0 } else { host }),
            ..*self
        }
    }

    fn allows(&self, access: Access) -> bool {
        (self.read || access == Access::Write) && (self.write || access == Access::Read)
    }
}

/// Which entries an invalidation reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    /// Those without PASID.
    WithoutPasid,
    /// Those of one PASID.
    OfPasid(u32),
    /// Those of every PASID.
    OfAnyPasid,
    /// All.
    All,
}

impl Reach {
    fn includes(self, pasid: Option<Pasid>) -> bool {
        match self {
            Self::WithoutPasid => pasid.is_none(),
            Self::OfPasid(wanted) => pasid.is_some_and(|pasid| pasid.as_u32() == wanted),
            Self::OfAnyPasid => pasid.is_some(),
            Self::All => true,
        }
    }
}

/// An invalidation request as it reaches the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Invalidation {
    reach: Reach,
    block: Block,
}

impl Invalidation {
    /// From a descriptor of type 3 or 8.
    fn from_words([q0, q1, ..]: [u64; 4], with_pasid: bool) -> Self {
        let address = bits::page(q1);
        let is_sized = bit(q1, if with_pasid { 11 } else { 0 });
        // S=1: the lowest 0 from bit 12 up ends a block that is twice as large.
        let order = if is_sized {
            13 + (address >> 12).trailing_ones()
        } else {
            12
        };
        let block = Block::around(address, order);
        let is_whole = block.first == 0 && block.last == u64::MAX;
        let reach = match with_pasid {
            true if bit(q1, 0) => Reach::OfAnyPasid,
            true => Reach::OfPasid(field(q0, 51, 32) as u32),
            // Table 28 has it suffice for a changed context entry, so it takes the PASIDs too.
            false if is_whole => Reach::All,
            false => Reach::WithoutPasid,
        };
        Self { reach, block }
    }
}

/// A device as far as the unit's protocol goes.
#[derive(Default)]
pub(crate) struct Device {
    mode: DeviceTlbMode,
    /// UR to a translation request switches ATS off.
    ats_disabled: bool,
    /// Its translated requests carry the PASID.
    translated_pasid: bool,
    entries: Vec<DeviceTlbEntry>,
    /// The physical function that a virtual one belongs to.
    physical_function: Option<u16>,
    /// Page requests without an answer.
    pending: Vec<PageRequest>,
}

impl Device {
    /// The oldest entry that allows an access; or else the oldest one for its address.
    fn look_up(&self, request: &Request) -> Option<DeviceTlbEntry> {
        let address = request.address.as_u64();
        let privileged = request.pasid.is_some() && request.privileged;
        let mut covering = self.entries.iter().filter(|entry| {
            let is_asked = (entry.pasid, entry.privileged) == (request.pasid, privileged);
            is_asked && entry.first.as_u64() <= address && entry.last.as_u64() >= address
        });
        let best = covering
            .clone()
            .find(|entry| entry.allows(request.access))
            .or_else(|| covering.next());
        // Asked for reads only, it has to ask again for a write.
        best.filter(|entry| {
            entry.allows(request.access) || !entry.no_write || request.access == Access::Read
        })
        .copied()
    }

    fn fill(&mut self, request: &Request, no_write: bool, data: &TranslationData) {
        // Nothing granted is a fault to recover from, never an entry (§7.1.2).
        if self.mode == DeviceTlbMode::None || !data.read && !data.write {
            return;
        }
        let entry = DeviceTlbEntry {
            pasid: request.pasid,
            privileged: data.privileged,
            first: data.first,
            last: Iova::new(data.first.as_u64() + (data.length_bytes - 1)),
            host: data.host,
            read: data.read,
            write: data.write,
            no_write,
            untranslated_only: data.untranslated_only,
        };
        if !self.entries.contains(&entry) {
            self.entries.push(entry);
        }
    }

    /// Takes a block out of the entries, and returns the parts that went. What lies beside it
    /// stays.
    fn drop_entries(&mut self, reach: Reach, block: Block) -> Vec<DeviceTlbEntry> {
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
        for entry in self.entries.drain(..) {
            let own = entry.block();
            if !reach.includes(entry.pasid) || own.last < block.first || own.first > block.last {
                kept.push(entry);
                continue;
            }
            dropped.push(entry.part(own.first.max(block.first), own.last.min(block.last)));
            if own.first < block.first {
                kept.push(entry.part(own.first, block.first - 1));
            }
            if own.last > block.last {
                kept.push(entry.part(block.last + 1, own.last));
            }
        }
        self.entries = kept;
        dropped
    }

    /// Sends a page request: it is pending unless no answer is to come (a stop marker).
    pub(crate) fn send(&mut self, request: PageRequest) {
        if request.read || request.write {
            self.pending.push(request);
        }
    }

    /// Takes a page group response: what faulted is asked for anew (§7.1.2). One that answers
    /// nothing is discarded (§7.9).
    pub(crate) fn answer(&mut self, response: &PageResponse) {
        let pending = std::mem::take(&mut self.pending);
        let (answered, rest): (Vec<_>, Vec<_>) = pending
            .into_iter()
            .partition(|request| response.is_for(request));
        self.pending = rest;
        if response.code != ResponseCode::Success {
            return;
        }
        for request in answered {
            let reach = request
                .pasid
                .map_or(Reach::WithoutPasid, |pasid| Reach::OfPasid(pasid.as_u32()));
            self.drop_entries(reach, Block::around(request.address.as_u64(), 12));
        }
    }
}

/// All devices that ever did something of this.
#[derive(Default)]
pub(crate) struct Devices(BTreeMap<u16, Device>);

impl Devices {
    fn get(&self, source_id: SourceId) -> Option<&Device> {
        self.0.get(&source_id.as_u16())
    }

    pub(crate) fn of(&mut self, source_id: SourceId) -> &mut Device {
        self.0.entry(source_id.as_u16()).or_default()
    }
}

/// How a device's own access goes on.
pub(crate) enum Route {
    /// By an untranslated request.
    Untranslated,
    /// By a translated request to this host address.
    Translated(u64),
    /// Not at all: there is no such right. A device that can reports it and asks for the page.
    Recoverable,
    /// Not at all: the translation request failed.
    Failed(CompletionStatus),
}

impl Unit {
    /// A device sends a translation request and takes the completion.
    pub(crate) fn ask_translation(
        &mut self,
        request: &Request,
        no_write: bool,
    ) -> TranslationCompletion {
        let completion = self.translation_request(request, no_write);
        let device = self.devices.of(request.source_id);
        if completion.status == CompletionStatus::UnsupportedRequest {
            device.ats_disabled = true;
        }
        if let Some(data) = &completion.data {
            device.fill(request, no_write, data);
        }
        completion
    }

    /// How an access of a device with a device-TLB is made.
    pub(crate) fn route(&mut self, request: &Request) -> Route {
        let device = self.devices.of(request.source_id);
        if device.ats_disabled {
            return Route::Untranslated;
        }
        if let Some(entry) = device.look_up(request) {
            return if entry.untranslated_only {
                Route::Untranslated
            } else if entry.allows(request.access) {
                let offset = request.address.as_u64() - entry.first.as_u64();
                Route::Translated(entry.host.as_u64() + offset)
            } else {
                Route::Recoverable
            };
        }
        let completion = self.ask_translation(request, request.access == Access::Read);
        let Some(data) = completion.data else {
            return Route::Failed(completion.status);
        };
        let allowed = (data.read || request.access == Access::Write)
            && (data.write || request.access == Access::Read);
        if data.untranslated_only {
            Route::Untranslated
        } else if allowed {
            let offset = request.address.as_u64() - data.first.as_u64();
            Route::Translated(data.host.as_u64() + offset)
        } else {
            Route::Recoverable
        }
    }

    /// Whether a device's translated requests carry their PASID.
    pub(crate) fn sends_translated_pasid(&self, request: &Request) -> bool {
        self.devices
            .get(request.source_id)
            .is_some_and(|device| device.translated_pasid)
    }

    /// Executes a descriptor of type 3, or of type 8 (`with_pasid`): the device completes it.
    pub(crate) fn invalidate_device_tlb(&mut self, words: [u64; 4], with_pasid: bool) {
        let q0 = words[0];
        let number = if with_pasid {
            field(q0, 31, 16) as u16
        } else {
            field(q0, 47, 32) as u16
        };
        let source_id = SourceId::from_u16(number);
        let throttles = self.config.has(Ecap::DEVICE_TLB_THROTTLING);
        let device = self.devices.of(source_id);
        let wanted = device.physical_function.unwrap_or(number);
        let given = (field(q0, 15, 12) | field(q0, 63, 52) << 4) as u16;
        let invalidation = Invalidation::from_words(words, with_pasid);
        let dropped = match device.mode {
            DeviceTlbMode::KeepsInvalidated => Vec::new(),
            _ => device.drop_entries(invalidation.reach, invalidation.block),
        };
        let refills = device.mode == DeviceTlbMode::Refilling && !device.ats_disabled;
        if throttles && given != wanted {
            self.violation(Violation::PhysicalFunctionDiffers {
                source_id,
                wanted: SourceId::from_u16(wanted),
                given: SourceId::from_u16(given),
            });
        }
        if refills {
            for entry in dropped {
                let request = Request {
                    privileged: entry.privileged,
                    ..Request::new(source_id, entry.pasid, entry.first, Access::Read)
                };
                self.ask_translation(&request, entry.no_write);
            }
        }
        self.note_invalidation_completion();
    }
}

impl ModelUnit {
    /// Changes what a device does with its device-TLB.
    pub fn set_device_tlb_mode(&self, source_id: SourceId, mode: DeviceTlbMode) {
        let mut unit = self.0.borrow_mut();
        let device = unit.devices.of(source_id);
        device.mode = mode;
        if mode == DeviceTlbMode::None {
            device.entries.clear();
        }
    }

    /// What a device's device-TLB holds, oldest first.
    pub fn device_tlb(&self, source_id: SourceId) -> Vec<DeviceTlbEntry> {
        let unit = self.0.borrow();
        unit.devices
            .get(source_id)
            .map_or(Vec::new(), |device| device.entries.clone())
    }

    /// Whether a device's device-TLB is in use; from the start, and until the unit answers `UR` to
    /// a translation request.
    pub fn is_ats_enabled(&self, source_id: SourceId) -> bool {
        let unit = self.0.borrow();
        unit.devices
            .get(source_id)
            .is_none_or(|device| !device.ats_disabled)
    }

    /// Switches a device's device-TLB on or off. What it holds stays.
    pub fn set_ats_enabled(&self, source_id: SourceId, enabled: bool) {
        self.0.borrow_mut().devices.of(source_id).ats_disabled = !enabled;
    }

    /// Makes a device's translated requests carry their PASID, for units with ECAP.PTRS; without
    /// it such requests are unsupported (§4.2.5). From the start they do not.
    pub fn set_translated_pasid(&self, source_id: SourceId, enabled: bool) {
        self.0.borrow_mut().devices.of(source_id).translated_pasid = enabled;
    }

    /// Makes a device a virtual function of another one, which `PFSID` has to name (§6.5.2.5).
    pub fn set_physical_function(&self, source_id: SourceId, physical: SourceId) {
        let mut unit = self.0.borrow_mut();
        unit.devices.of(source_id).physical_function = Some(physical.as_u16());
    }

    /// The page requests of a device that have no answer yet.
    pub fn pending_page_requests(&self, source_id: SourceId) -> Vec<PageRequest> {
        let unit = self.0.borrow();
        unit.devices
            .get(source_id)
            .map_or(Vec::new(), |device| device.pending.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalidations_reach_what_their_descriptor_says() {
        let all = 0x7fff_ffff_ffff_f000;
        let block = |first, last| Block { first, last };
        let whole = block(0, u64::MAX);
        let with = 5 << 32 | 8;
        for (q0, q1, reach, range) in [
            (
                3,
                0x1234_5000,
                Reach::WithoutPasid,
                block(0x1234_5000, 0x1234_5fff),
            ),
            (
                3,
                0x1234_4001,
                Reach::WithoutPasid,
                block(0x1234_4000, 0x1234_5fff),
            ),
            (
                3,
                0x1234_5001,
                Reach::WithoutPasid,
                block(0x1234_4000, 0x1234_7fff),
            ),
            (
                3,
                0x122f_f001,
                Reach::WithoutPasid,
                block(0x1220_0000, 0x123f_ffff),
            ),
            (3, all | 1, Reach::All, whole),
            (
                with,
                0x1234_5000,
                Reach::OfPasid(5),
                block(0x1234_5000, 0x1234_5fff),
            ),
            (
                with,
                0x1234_5800,
                Reach::OfPasid(5),
                block(0x1234_4000, 0x1234_7fff),
            ),
            (
                with,
                0x1234_5001,
                Reach::OfAnyPasid,
                block(0x1234_5000, 0x1234_5fff),
            ),
            (with, all | 1 << 11, Reach::OfPasid(5), whole),
            (with, all | 1 << 11 | 1, Reach::OfAnyPasid, whole),
        ] {
            let found = Invalidation::from_words([q0, q1, 0, 0], q0 != 3);
            assert_eq!(
                found,
                Invalidation {
                    reach,
                    block: range
                },
                "{q0:#x} {q1:#x}"
            );
        }
    }
}
