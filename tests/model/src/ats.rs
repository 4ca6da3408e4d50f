//! Translation requests and translated requests, as the unit handles them (§4.2).

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::fault::FaultReason;

use crate::bits::{self, bit, field};
use crate::cache::{Block, Blocked, CachedPasid, IotlbValue, Kind, Rights};
use crate::dma::{Access, Request};
use crate::fault::Origin;
use crate::initiator::DmaError;
use crate::translate::{Asker, Mapping, denied, stop};
use crate::unit::Unit;
use crate::violation::Violation;

/// The status of a translation completion (§4.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompletionStatus {
    /// There is data; it may grant nothing.
    Success,
    /// `UR`: not allowed. The function switches ATS off.
    UnsupportedRequest,
    /// `CA`: the unit met an error.
    CompleterAbort,
}

/// The data of a successful translation completion (§4.2.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TranslationData {
    /// The first untranslated address that it holds for.
    pub first: Iova,
    /// How many bytes it holds for: a power of two, and `first` is aligned to it.
    pub length_bytes: u64,
    /// The host address of `first`; 0 unless something may be accessed by translated requests.
    pub host: Hpa,
    /// `R`.
    pub read: bool,
    /// `W`.
    pub write: bool,
    /// `U`: the range takes untranslated requests only.
    pub untranslated_only: bool,
    /// `PRIV`: the rights are those of supervisor requests.
    pub privileged: bool,
    /// `N`: translated requests must not ask for no-snoop accesses.
    pub non_snooped: bool,
}

impl TranslationData {
    /// What grants nothing: R=W=U=S=0.
    fn nothing(request: &Request) -> Self {
        Self {
            first: Iova::new(bits::page(request.address.as_u64())),
            length_bytes: 4096,
            host: Hpa::new(0),
            read: false,
            write: false,
            untranslated_only: false,
            privileged: is_supervisor(request),
            non_snooped: false,
        }
    }

    /// The quadword that goes to the device: R 0, W 1, U 2, EXE 3, PRIV 4, G 5, N 10, S 11, ADDR
    /// 63:12, in which the lowest 0 tells the size. EXE and G are always 0.
    pub fn bits(&self) -> u64 {
        let size = self.length_bytes / 2 - 1;
        u64::from(self.read)
            | u64::from(self.write) << 1
            | u64::from(self.untranslated_only) << 2
            | u64::from(self.privileged) << 4
            | u64::from(self.non_snooped) << 10
            | u64::from(self.length_bytes > 4096) << 11
            | self.host.as_u64()
            | bits::page(size)
    }
}

/// The unit's answer to a translation request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TranslationCompletion {
    /// The status.
    pub status: CompletionStatus,
    /// The data, with [`CompletionStatus::Success`] only.
    pub data: Option<TranslationData>,
    /// What stopped it. Recorded as a fault unless the status is success: then the device is to
    /// recover (§7.1.2), and only a failed update of a first-stage entry is recorded all the same.
    /// `None` also for requests that are unsupported without being a fault (§4.2.1).
    pub reason: Option<FaultReason>,
}

impl TranslationCompletion {
    const UNSUPPORTED: Self = Self {
        status: CompletionStatus::UnsupportedRequest,
        data: None,
        reason: None,
    };
}

/// What Table 30 says of a translation request that meets a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    UnsupportedRequest,
    CompleterAbort,
    /// Success that grants nothing.
    Nothing,
    /// As [`Nothing`](Self::Nothing), and recorded.
    NothingRecorded,
}

const fn answer(reason: FaultReason) -> Answer {
    match reason.code() {
        0x01 | 0x02 | 0x0d | 0x31 | 0x33 | 0x34 | 0x39 | 0x41 | 0x44..=0x46 | 0x48 | 0x89 => {
            Answer::UnsupportedRequest
        }
        // 05, 06, 85 and 86 give what rights there are: none, if they are met as faults.
        0x04..=0x06
        | 0x51
        | 0x59
        | 0x5c
        | 0x5d
        | 0x70..=0x77
        | 0x79
        | 0x80
        | 0x81
        | 0x83..=0x86
        | 0x90 => Answer::Nothing,
        0x91 => Answer::NothingRecorded,
        _ => Answer::CompleterAbort,
    }
}

/// What a translation request found.
enum Found {
    Page(TranslationData),
    /// The interrupt range (S.1 and S.2).
    Interrupts,
}

/// PR of a request with PASID.
fn is_supervisor(request: &Request) -> bool {
    request.pasid.is_some() && request.privileged
}

fn is_denied(reason: FaultReason) -> bool {
    matches!(
        reason,
        FaultReason::LegacyWriteDenied | FaultReason::WriteDenied
    )
}

/// Whether a block of host addresses meets the interrupt range.
fn meets_interrupts(block: Block) -> bool {
    block.first <= 0xfeef_ffff && block.last >= 0xfee0_0000
}

impl Unit {
    /// Answers a translation request; `no_write` is its NW flag.
    pub(crate) fn translation_request(
        &mut self,
        request: &Request,
        no_write: bool,
    ) -> TranslationCompletion {
        // Without ECAP.DT the AT field is as good as reserved (§4.2.1).
        if !self.config.has(Ecap::DEVICE_TLB) || !self.registers.translation_enabled() {
            return TranslationCompletion::UNSUPPORTED;
        }
        let no_write = no_write && self.config.has(Ecap::NO_WRITE_FLAG);
        let success = |data, reason| TranslationCompletion {
            status: CompletionStatus::Success,
            data: Some(data),
            reason,
        };
        let nothing = TranslationData::nothing(request);
        match self.find(request, no_write) {
            Ok(Found::Page(data)) => success(data, None),
            Ok(Found::Interrupts) => success(
                TranslationData {
                    write: !no_write,
                    untranslated_only: !no_write,
                    ..nothing
                },
                None,
            ),
            Err(blocked) => {
                let reason = Some(blocked.reason);
                let status = match answer(blocked.reason) {
                    Answer::UnsupportedRequest => CompletionStatus::UnsupportedRequest,
                    Answer::CompleterAbort => CompletionStatus::CompleterAbort,
                    Answer::Nothing => return success(nothing, reason),
                    Answer::NothingRecorded => {
                        self.block_from(Origin::TranslationRequest, request, blocked);
                        return success(nothing, reason);
                    }
                };
                self.block_from(Origin::TranslationRequest, request, blocked);
                TranslationCompletion {
                    status,
                    data: None,
                    reason,
                }
            }
        }
    }

    fn find(&mut self, request: &Request, no_write: bool) -> Result<Found, Blocked> {
        self.check_mode(request)?;
        let source_id = request.source_id.as_u16();
        let asker = Asker {
            access: if no_write {
                Access::Read
            } else {
                Access::Write
            },
            supervisor: is_supervisor(request),
            zero_length: false,
        };
        // The device asks for its interrupts too: page tables have no say in these.
        let interrupts =
            request.pasid.is_none() && bits::is_interrupt_address(request.address.as_u64());
        if self.registers.table_mode() == 0 {
            let context = self.legacy_context(source_id)?;
            let fault_disable = bit(context.words[0], 1);
            if field(context.words[0], 3, 2) != 0b01 {
                return Err(stop(FaultReason::LegacyAddressTypeBlocked, fault_disable));
            }
            if interrupts {
                return Ok(Found::Interrupts);
            }
            let mapping = match self.hit(request, &asker) {
                Some(hit) => hit?,
                None => self.map_for_device(&asker, |unit, asker| {
                    unit.map_legacy(request, &context, asker)
                })?,
            };
            let place = Place {
                mapping,
                asker,
                legacy: true,
                snooped: mapping.rights.second_snoop,
                fault_disable,
            };
            return self.data(request, no_write, &place).map(Found::Page);
        }
        let context = self.scalable_context(source_id)?;
        let pasid = self.check_context(&context, request, Origin::TranslationRequest)?;
        if interrupts {
            return Ok(Found::Interrupts);
        }
        let entry = self.pasid_entry(source_id, pasid, &context)?;
        let asker = Self::check_asker(request, &context, &entry, &asker)?;
        let mapping = if entry.kind() == Kind::PassThrough {
            self.pass_through(request, &entry)?
        } else {
            match self.hit(request, &asker) {
                Some(hit) => hit?,
                None => self.map_for_device(&asker, |unit, asker| {
                    unit.map_by_entry(request, pasid, &entry, asker)
                })?,
            }
        };
        let uses_second = matches!(entry.kind(), Kind::Second | Kind::Nested);
        let place = Place {
            mapping,
            asker,
            legacy: false,
            // PGSNP.
            snooped: bit(entry.words[1], 24) || uses_second && mapping.rights.second_snoop,
            fault_disable: entry.fault_disable,
        };
        if entry.kind() == Kind::PassThrough {
            // With PASID it may lie in the interrupt range: no fault of this request (SGN.8.2).
            return Ok(Found::Page(self.grant(request, no_write, &place)));
        }
        self.data(request, no_write, &place).map(Found::Page)
    }

    /// Walks as for a write, so that dirty bits are set, and as for a read where a write may not.
    fn map_for_device(
        &mut self,
        asker: &Asker,
        mut map: impl FnMut(&mut Self, &Asker) -> Result<Mapping, Blocked>,
    ) -> Result<Mapping, Blocked> {
        self.counters.iotlb_misses += 1;
        match map(self, asker) {
            Err(blocked) if is_denied(blocked.reason) && asker.writes() => {
                let reader = Asker {
                    access: Access::Read,
                    ..*asker
                };
                map(self, &reader)
            }
            mapped => mapped,
        }
    }

    /// What the IOTLB has, if that is enough: the largest block that one completion can tell.
    fn hit(&mut self, request: &Request, asker: &Asker) -> Option<Result<Mapping, Blocked>> {
        // As for untranslated requests: the rights of other requests are not those of these.
        if is_supervisor(request) {
            return None;
        }
        let address = request.address.as_u64();
        let pasid = request.pasid.map(|pasid| pasid.as_u32());
        let (first, entry) = self
            .caches
            .iotlb(request.source_id.as_u16(), pasid, address)?;
        let (host, rights, dirty) = match entry.value {
            IotlbValue::Faulting(reason) => {
                let reason = reason.unwrap_or(denied(asker.writes(), true));
                return Some(Err(stop(reason, entry.fault_disable)));
            }
            IotlbValue::Page {
                host,
                rights,
                dirty,
            } => (host, rights, dirty),
        };
        let user = Asker {
            supervisor: false,
            ..*asker
        };
        let legacy = entry.kind == Kind::Legacy;
        let may_write = self.check_rights(&rights, &user, legacy).is_ok();
        if asker.writes() && may_write && !dirty {
            return None;
        }
        self.counters.iotlb_hits += 1;
        let whole = Block {
            first,
            last: entry.last,
        };
        let block = largest_block(whole, host, address);
        Some(Ok(Mapping {
            block,
            host: host + (block.first - first),
            rights,
            dirty,
        }))
    }

    /// As large a region as the largest page of the unit, aligned to its size (§4.2.3): but one
    /// that leaves out the interrupt range, where no translated request may go.
    fn pass_through(&self, request: &Request, entry: &CachedPasid) -> Result<Mapping, Blocked> {
        let address = request.address.as_u64();
        if address & self.beyond_host() != 0 {
            return Err(stop(
                FaultReason::AddressBeyondHostWidth,
                entry.fault_disable,
            ));
        }
        let second_stage_pages = self.config.cap(Cap::SECOND_STAGE_LARGE_PAGES);
        let gigabyte =
            bit(second_stage_pages, 1) || self.config.has_cap(Cap::FIRST_STAGE_1GIB_PAGES);
        let two_megabytes = bit(second_stage_pages, 0) || self.config.has(Ecap::FIRST_STAGE);
        let block = [(gigabyte, 30), (two_megabytes, 21)]
            .into_iter()
            .filter(|(supported, _)| *supported)
            .map(|(_, order)| Block::around(address, order))
            .find(|block| !meets_interrupts(*block))
            .unwrap_or(Block::around(address, 12));
        Ok(Mapping {
            block,
            host: block.first,
            rights: Rights::ALL,
            dirty: true,
        })
    }

    /// The completion's data, unless the page meets the interrupt range.
    fn data(
        &self,
        request: &Request,
        no_write: bool,
        place: &Place,
    ) -> Result<TranslationData, Blocked> {
        let mapping = &place.mapping;
        let host = Block {
            first: mapping.host,
            last: mapping.host + (mapping.block.last - mapping.block.first),
        };
        if meets_interrupts(host) {
            let reason = if place.legacy {
                FaultReason::LegacyInterruptAddress
            } else {
                FaultReason::InterruptAddress
            };
            return Err(stop(reason, place.fault_disable));
        }
        // U/S=0 grants nothing and tells no size.
        let read = Asker {
            access: Access::Read,
            ..place.asker
        };
        match self.check_rights(&mapping.rights, &read, place.legacy) {
            Err(FaultReason::UserRequestDenied) => {
                Err(stop(FaultReason::UserRequestDenied, place.fault_disable))
            }
            _ => Ok(self.grant(request, no_write, place)),
        }
    }

    /// The completion's data: what rights there are.
    fn grant(&self, request: &Request, no_write: bool, place: &Place) -> TranslationData {
        let mapping = &place.mapping;
        let may = |access| {
            let asker = Asker {
                access,
                ..place.asker
            };
            self.check_rights(&mapping.rights, &asker, place.legacy)
                .is_ok()
        };
        let (read, write) = (may(Access::Read), !no_write && may(Access::Write));
        if !read && !write {
            return TranslationData::nothing(request);
        }
        TranslationData {
            first: Iova::new(mapping.block.first),
            length_bytes: mapping.block.last - mapping.block.first + 1,
            host: Hpa::new(mapping.host),
            read,
            write,
            untranslated_only: false,
            privileged: is_supervisor(request),
            non_snooped: place.snooped,
        }
    }

    /// Checks a translated request (§4.2.5): its address is a host address and stays as it is.
    pub(crate) fn translated_request(&mut self, request: &Request) -> Result<u64, DmaError> {
        let with_pasid = self.config.has(Ecap::PASID_IN_TRANSLATED_REQUESTS);
        if !self.config.has(Ecap::DEVICE_TLB)
            || !self.registers.translation_enabled()
            || request.pasid.is_some() && !with_pasid
        {
            return Err(DmaError::Unsupported);
        }
        self.check_translated(request)
            .map_err(|blocked| self.block_from(Origin::Translated, request, blocked).into())
    }

    fn check_translated(&mut self, request: &Request) -> Result<u64, Blocked> {
        use FaultReason::*;
        self.check_mode(request)?;
        let source_id = request.source_id.as_u16();
        let address = request.address.as_u64();
        let legacy = self.registers.table_mode() == 0;
        let context = if legacy {
            let context = self.legacy_context(source_id)?;
            if field(context.words[0], 3, 2) != 0b01 {
                return Err(stop(LegacyAddressTypeBlocked, bit(context.words[0], 1)));
            }
            context
        } else {
            let context = self.scalable_context(source_id)?;
            self.check_context(&context, request, Origin::Translated)?;
            if bit(context.words[0], 5) {
                self.violation(Violation::NotModelled("host permission tables"));
            }
            context
        };
        let (too_large, interrupt) = if legacy {
            (LegacyAddressTooLarge, LegacyInterruptAddress)
        } else {
            (AddressBeyondHostWidth, InterruptAddress)
        };
        let fault_disable = bit(context.words[0], 1);
        if address & self.beyond_host() != 0 {
            return Err(stop(too_large, fault_disable));
        }
        if bits::is_interrupt_address(address) {
            return Err(stop(interrupt, fault_disable));
        }
        Ok(address)
    }
}

/// A page that was found for a translation request.
struct Place {
    mapping: Mapping,
    asker: Asker,
    legacy: bool,
    /// N.
    snooped: bool,
    fault_disable: bool,
}

/// The largest naturally aligned block around an address within `whole`, which lies at `host`.
fn largest_block(whole: Block, host: u64, address: u64) -> Block {
    let is_inside = |block: &Block| {
        let length = block.last - block.first;
        block.first >= whole.first
            && block.last <= whole.last
            && (host + (block.first - whole.first)) & length == 0
    };
    (13..=48)
        .rev()
        .map(|order| Block::around(address, order))
        .find(is_inside)
        .unwrap_or(Block::around(address, 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_the_answer_of_table_30() {
        let of = |wanted| -> Vec<u8> {
            FaultReason::ALL
                .iter()
                .filter(|reason| answer(**reason) == wanted)
                .map(|reason| reason.code())
                .collect()
        };
        assert_eq!(
            of(Answer::UnsupportedRequest),
            [
                0x01, 0x02, 0x0d, 0x31, 0x33, 0x34, 0x39, 0x41, 0x44, 0x45, 0x46, 0x48, 0x89
            ]
        );
        let aborts: Vec<u8> = of(Answer::CompleterAbort)
            .into_iter()
            // Interrupts, page requests, translated requests and their tables.
            .filter(|code| !matches!(code, 0x20..=0x2b | 0x32 | 0x47 | 0x49 | 0x60 | 0xa0..))
            .collect();
        assert_eq!(
            aborts,
            [
                0x03, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0e, 0x30, 0x38, 0x3a, 0x40, 0x42, 0x43,
                0x50, 0x52, 0x58, 0x5a, 0x5b, 0x78, 0x7a, 0x7b, 0x7c, 0x7d, 0x87
            ]
        );
        assert_eq!(of(Answer::NothingRecorded), [0x91]);
    }

    #[test]
    fn completions_tell_their_size_by_the_lowest_zero() {
        let data = TranslationData {
            first: Iova::new(0),
            length_bytes: 4096,
            host: Hpa::new(0x1234_5000),
            read: true,
            write: false,
            untranslated_only: false,
            privileged: false,
            non_snooped: false,
        };
        for (length_bytes, host, bits) in [
            (0x1000, 0x1234_5000, 0x1234_5001),
            (0x2000, 0x1234_4000, 0x1234_4801),
            (0x4000, 0x1234_4000, 0x1234_5801),
            (0x20_0000, 0x1220_0000, 0x122f_f801),
            (0x4000_0000, 0x4000_0000, 0x5fff_f801),
        ] {
            let data = TranslationData {
                length_bytes,
                host: Hpa::new(host),
                ..data
            };
            assert_eq!(data.bits(), bits, "{length_bytes:#x}");
        }
        let all = TranslationData {
            write: true,
            untranslated_only: true,
            privileged: true,
            non_snooped: true,
            ..data
        };
        assert_eq!(all.bits(), 0x1234_5417);
    }

    #[test]
    fn a_block_is_as_large_as_both_its_addresses_allow() {
        let whole = |first, last| Block { first, last };
        for (cut, host, address, block) in [
            (
                whole(0x20_0000, 0x3f_ffff),
                0x80_0000,
                0x2f_1234,
                whole(0x20_0000, 0x3f_ffff),
            ),
            // A page is gone from the middle: what is left is smaller.
            (
                whole(0x20_0000, 0x2f_ffff),
                0x80_0000,
                0x2f_1234,
                whole(0x20_0000, 0x2f_ffff),
            ),
            (
                whole(0x30_1000, 0x3f_ffff),
                0x90_1000,
                0x30_1000,
                whole(0x30_1000, 0x30_1fff),
            ),
            (
                whole(0x30_1000, 0x3f_ffff),
                0x90_1000,
                0x30_2000,
                whole(0x30_2000, 0x30_3fff),
            ),
            // The host address is less aligned.
            (
                whole(0x40_0000, 0x5f_ffff),
                0x1000,
                0x40_0000,
                whole(0x40_0000, 0x40_0fff),
            ),
        ] {
            assert_eq!(
                largest_block(cut, host, address),
                block,
                "{cut:x?} {address:#x}"
            );
        }
    }
}
