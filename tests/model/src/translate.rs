//! From a request to a host address: root table, context, PASID tables (§3, Table 30).

use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::fault::FaultReason;

use crate::bits::{self, bit, field, page};
use crate::cache::{
    Block, Blocked, CachedContext, CachedPasid, IotlbEntry, IotlbValue, Kind, Rights,
};
use crate::config::FetchOrder;
use crate::dma::{Access, Request};
use crate::fault::Origin;
use crate::unit::Unit;
use crate::violation::Violation;
use crate::walk::{FirstStage, SecondStage, WalkStop};

/// A host address, and the last one up to which the translation holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Located {
    pub(crate) host: u64,
    pub(crate) last: u64,
}

/// A page as it goes into the IOTLB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    /// First address of the page, and its last.
    pub(crate) block: Block,
    pub(crate) host: u64,
    pub(crate) rights: Rights,
    pub(crate) dirty: bool,
}

/// Who asks: what a request becomes once its context and PASID entries are known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) access: Access,
    pub(crate) supervisor: bool,
    pub(crate) zero_length: bool,
}

impl Asker {
    pub(crate) fn reads(&self) -> bool {
        self.access != Access::Write
    }

    pub(crate) fn writes(&self) -> bool {
        self.access != Access::Read
    }
}

pub(crate) const fn stop(reason: FaultReason, fault_disable: bool) -> Blocked {
    Blocked {
        reason,
        fault_disable,
    }
}

impl Unit {
    /// Translates one request while TES=1.
    pub(crate) fn translate(&mut self, request: &Request) -> Result<Located, Blocked> {
        self.check_mode(request)?;
        let executes = request.pasid.is_some() && request.execute;
        let asker = Asker {
            access: request.access,
            supervisor: request.pasid.is_some() && request.privileged,
            zero_length: request.zero_length,
        };
        // Supervisor and execute requests are looked at anew: the PASID entry must allow them.
        if !asker.supervisor
            && !executes
            && let Some(found) = self.look_up(request, &asker)
        {
            self.counters.iotlb_hits += 1;
            return found;
        }
        self.counters.iotlb_misses += 1;
        if self.registers.table_mode() == 0 {
            self.translate_legacy(request, &asker)
        } else {
            self.translate_scalable(request, &asker)
        }
    }

    /// What is wrong before any table is read (RTA.1, 2, 4 and 5).
    pub(crate) fn check_mode(&self, request: &Request) -> Result<(), Blocked> {
        use FaultReason::*;
        let mode = self.registers.table_mode();
        let has = |feature| self.config.has(feature);
        if mode == 2
            || mode == 1 && !has(Ecap::SCALABLE_MODE)
            || mode == 3 && !has(Ecap::ABORT_DMA_MODE)
            || mode == 0 && self.registers.second_stage_io_permissions()
        {
            return Err(stop(RootTableAddressInvalid, false));
        }
        if mode == 0 && request.pasid.is_some() {
            return Err(stop(PasidInLegacyMode, false));
        }
        if mode == 3 {
            return Err(stop(AbortDmaMode, false));
        }
        let executes = request.pasid.is_some() && request.execute;
        if executes && self.config.major_version() >= 8 {
            return Err(stop(ExecuteRequestBlocked, false));
        }
        Ok(())
    }

    /// The IOTLB's answer, if it has one that needs no walk.
    fn look_up(&self, request: &Request, asker: &Asker) -> Option<Result<Located, Blocked>> {
        let address = request.address.as_u64();
        let pasid = request.pasid.map(|pasid| pasid.as_u32());
        let (first, entry) = self
            .caches
            .iotlb(request.source_id.as_u16(), pasid, address)?;
        let legacy = entry.kind == Kind::Legacy;
        match entry.value {
            IotlbValue::Faulting(reason) => {
                let reason = reason.unwrap_or(denied(asker.writes(), true));
                Some(Err(stop(reason, entry.fault_disable)))
            }
            IotlbValue::Page {
                host,
                rights,
                dirty,
            } => {
                if let Err(reason) = self.check_rights(&rights, asker, legacy) {
                    return Some(Err(stop(reason, entry.fault_disable)));
                }
                if asker.writes() && !dirty {
                    return None;
                }
                if bits::is_interrupt_address(host + (address - first)) {
                    let reason = if legacy {
                        FaultReason::LegacyInterruptAddress
                    } else {
                        FaultReason::InterruptAddress
                    };
                    return Some(Err(stop(reason, entry.fault_disable)));
                }
                Some(Ok(Located {
                    host: host + (address - first),
                    last: host + (entry.last - first),
                }))
            }
        }
    }

    /// Whether rights allow a request; first stage before second stage, writes before reads.
    pub(crate) fn check_rights(
        &self,
        rights: &Rights,
        asker: &Asker,
        legacy: bool,
    ) -> Result<(), FaultReason> {
        if !asker.supervisor && !rights.user {
            return Err(FaultReason::UserRequestDenied);
        }
        let respects_write = !asker.supervisor || rights.write_protect;
        let write_allowed = (rights.first_write || !respects_write) && rights.second_write;
        if asker.writes() && !write_allowed {
            return Err(denied(true, legacy));
        }
        let zero_length_passes = asker.zero_length
            && asker.access == Access::Read
            && rights.second_write
            && self.config.has_cap(Cap::ZERO_LENGTH_READ);
        if asker.reads() && !rights.second_read && !zero_length_passes {
            return Err(denied(false, legacy));
        }
        Ok(())
    }

    /// Bits that are reserved in every pointer field.
    pub(crate) fn beyond_host(&self) -> u64 {
        bits::from_bit(u32::from(self.config.host_address_width))
    }

    fn caches_faults(&self) -> bool {
        self.config.has_cap(Cap::CACHING_MODE)
    }

    // ---- legacy mode ----

    fn translate_legacy(&mut self, request: &Request, asker: &Asker) -> Result<Located, Blocked> {
        let context = self.legacy_context(request.source_id.as_u16())?;
        let mapping = self.map_legacy(request, &context, asker)?;
        self.check_rights(&mapping.rights, asker, true)
            .map_err(|reason| stop(reason, bit(context.words[0], 1)))?;
        Ok(located(&mapping, request.address.as_u64()))
    }

    /// The legacy context entry of a device, from the cache or from memory.
    pub(crate) fn legacy_context(&mut self, source_id: u16) -> Result<CachedContext, Blocked> {
        let context = match self.caches.context(source_id) {
            Some(cached) => cached,
            None => self.fetch_legacy_context(source_id)?,
        };
        context.blocked.map_or(Ok(context), Err)
    }

    /// Translates by a legacy context entry, and fills the IOTLB. The rights are those of the page.
    pub(crate) fn map_legacy(
        &mut self,
        request: &Request,
        context: &CachedContext,
        asker: &Asker,
    ) -> Result<Mapping, Blocked> {
        use FaultReason::*;
        let source_id = request.source_id.as_u16();
        let [q0, q1, ..] = context.words;
        let fault_disable = bit(q0, 1);
        let domain = field(q1, 23, 8) as u16;
        let width = field(q1, 2, 0);
        let address = request.address.as_u64();
        let entry = |value, last| IotlbEntry {
            last,
            value,
            domain,
            pasid: 0,
            kind: Kind::Legacy,
            fault_disable,
        };
        let mapping = if field(q0, 3, 2) == 0b10 {
            if address & self.beyond_host() != 0 {
                return Err(stop(LegacyAddressTooLarge, fault_disable));
            }
            identity(address)
        } else {
            let limit = self.config.second_stage_bits(width);
            if address & bits::from_bit(limit) != 0 {
                return Err(stop(LegacyAddressTooLarge, fault_disable));
            }
            let stage = SecondStage {
                root: page(q0),
                levels: 2 + width as u8,
                limit_bits: limit,
                domain,
                snooped: self.config.has(Ecap::COHERENCY),
                accessed_dirty: false,
                io_permissions: false,
                memory_types: false,
            };
            match self.walk_second_only(&stage, address, asker, true) {
                Ok(mapping) => mapping,
                Err(stopped) => {
                    if stopped.may_cache && self.caches_faults() {
                        let block = Block::around(address, 12);
                        let reason =
                            (stopped.reason == LegacySecondStageReserved).then_some(stopped.reason);
                        let value = IotlbValue::Faulting(reason);
                        self.caches.insert_iotlb(
                            source_id,
                            None,
                            block.first,
                            entry(value, block.last),
                        );
                    }
                    return Err(stop(stopped.reason, fault_disable));
                }
            }
        };
        let offset = address - mapping.block.first;
        if bits::is_interrupt_address(mapping.host + offset) {
            return Err(stop(LegacyInterruptAddress, fault_disable));
        }
        let value = IotlbValue::Page {
            host: mapping.host,
            rights: mapping.rights,
            dirty: mapping.dirty,
        };
        self.caches.insert_iotlb(
            source_id,
            None,
            mapping.block.first,
            entry(value, mapping.block.last),
        );
        Ok(mapping)
    }

    /// Fetches, checks and caches a legacy context entry.
    fn fetch_legacy_context(&mut self, source_id: u16) -> Result<CachedContext, Blocked> {
        let mut words = [0; 2];
        let result = self.read_legacy_context(source_id, &mut words);
        if let Err(blocked) = result {
            let unreadable = matches!(
                blocked.reason,
                FaultReason::LegacyRootTableUnreadable | FaultReason::LegacyContextTableUnreadable
            );
            if self.caches_faults() && !unreadable {
                // Tagged with domain-id 0 (§6.2.2).
                self.caches.insert_context(
                    source_id,
                    CachedContext {
                        words: [0; 4],
                        domain: Some(0),
                        blocked: Some(blocked),
                    },
                );
            }
            return Err(blocked);
        }
        let [q0, q1] = words;
        let context = CachedContext {
            words: [q0, q1, 0, 0],
            domain: Some(field(q1, 23, 8) as u16),
            blocked: None,
        };
        if field(q0, 3, 2) != 0b10 {
            self.check_context_rules(source_id, &words);
        }
        self.caches.insert_context(source_id, context);
        Ok(context)
    }

    fn read_legacy_context(&mut self, source_id: u16, words: &mut [u64; 2]) -> Result<(), Blocked> {
        use FaultReason::*;
        let snooped = self.config.has(Ecap::COHERENCY);
        let beyond = self.beyond_host();
        let root_at = page(self.registers.root) + 16 * u64::from(source_id >> 8);
        let [q0, q1] = self
            .fetch(root_at, snooped)
            .ok_or(stop(LegacyRootTableUnreadable, false))?;
        if !bit(q0, 0) {
            return Err(stop(LegacyRootEntryNotPresent, false));
        }
        if q0 & (0xffe | beyond) != 0 || q1 != 0 {
            return Err(stop(LegacyRootEntryReserved, false));
        }
        let at = page(q0) + 16 * u64::from(source_id & 0xff);
        *words = self
            .fetch(at, snooped)
            .ok_or(stop(LegacyContextTableUnreadable, false))?;
        let [q0, q1] = *words;
        let fault_disable = bit(q0, 1);
        if !bit(q0, 0) {
            return Err(stop(LegacyContextEntryNotPresent, fault_disable));
        }
        let translation = field(q0, 3, 2);
        let pass_through = translation == 0b10;
        // Pass-through ignores SSPTPTR.
        let reserved0 = 0xff0 | if pass_through { 0 } else { beyond };
        let reserved1 =
            0xffff_ffff_ff00_0080 | bits::from_bit(8 + self.config.domain_id_bits()) & 0xff_ff00;
        if q0 & reserved0 != 0 || q1 & reserved1 != 0 {
            return Err(stop(LegacyContextEntryReserved, fault_disable));
        }
        let supported = match translation {
            0 => true,
            1 => self.config.has(Ecap::DEVICE_TLB),
            2 => self.config.has(Ecap::PASS_THROUGH),
            _ => false,
        };
        if !self.config.supports_width(field(q1, 2, 0)) || !supported {
            return Err(stop(LegacyContextEntryInvalid, fault_disable));
        }
        Ok(())
    }

    // ---- scalable mode ----

    fn translate_scalable(&mut self, request: &Request, asker: &Asker) -> Result<Located, Blocked> {
        let source_id = request.source_id.as_u16();
        let context = self.scalable_context(source_id)?;
        let pasid = self.check_context(&context, request, Origin::Untranslated)?;
        let entry = self.pasid_entry(source_id, pasid, &context)?;
        let asker = Self::check_asker(request, &context, &entry, asker)?;
        let mapping = self.map_by_entry(request, pasid, &entry, &asker)?;
        self.check_rights(&mapping.rights, &asker, false)
            .map_err(|reason| stop(reason, entry.fault_disable))?;
        Ok(located(&mapping, request.address.as_u64()))
    }

    /// The scalable-mode context entry of a device, from the cache or from memory.
    pub(crate) fn scalable_context(&mut self, source_id: u16) -> Result<CachedContext, Blocked> {
        let context = match self.caches.context(source_id) {
            Some(cached) => cached,
            None => self.fetch_scalable_context(source_id)?,
        };
        context.blocked.map_or(Ok(context), Err)
    }

    /// What a context entry says of a request (SCT.5 to SCT.10, SGN.10): the PASID to use.
    pub(crate) fn check_context(
        &self,
        context: &CachedContext,
        request: &Request,
        origin: Origin,
    ) -> Result<u32, Blocked> {
        use FaultReason::*;
        let [q0, q1, ..] = context.words;
        let blocked = |reason| Err(stop(reason, bit(q0, 1)));
        let uses_device_tlb = matches!(origin, Origin::TranslationRequest | Origin::Translated);
        if uses_device_tlb && !bit(q0, 2) {
            return blocked(DeviceTlbDisabled);
        }
        let rid_pasid = field(q1, 19, 0) as u32;
        let pasid = request.pasid.map(|pasid| pasid.as_u32());
        let is_above = |bits: u64| pasid.is_some_and(|pasid| u64::from(pasid) >> bits != 0);
        // Translated requests need EPTR, which includes PASIDE.
        if pasid.is_some() && origin != Origin::Translated && !bit(q0, 3) {
            return blocked(PasidDisabled);
        }
        if origin != Origin::PageRequest && is_above(self.config.ecap(Ecap::PASID_SIZE) + 1) {
            return blocked(PasidTooLarge);
        }
        if is_above(field(q0, 11, 9) + 13) {
            return blocked(PasidBeyondDirectory);
        }
        if origin == Origin::PageRequest && !bit(q0, 4) {
            return blocked(PageRequestDisabled);
        }
        if pasid == Some(rid_pasid) {
            return blocked(PasidEqualsRidPasid);
        }
        if pasid.is_some() && origin == Origin::Translated && !bit(q0, 6) {
            return blocked(TranslatedPasidDisabled);
        }
        Ok(pasid.unwrap_or(rid_pasid))
    }

    /// A PASID-table entry, from the cache or from memory.
    pub(crate) fn pasid_entry(
        &mut self,
        source_id: u16,
        pasid: u32,
        context: &CachedContext,
    ) -> Result<CachedPasid, Blocked> {
        let entry = match self.caches.pasid(source_id, pasid) {
            Some(cached) => cached,
            None => self.fetch_pasid(source_id, pasid, context)?,
        };
        entry.blocked.map_or(Ok(entry), Err)
    }

    /// What a PASID-table entry says of who asks (SPT.5, SPT.6): privilege by RID_PRIV included.
    pub(crate) fn check_asker(
        request: &Request,
        context: &CachedContext,
        entry: &CachedPasid,
        asker: &Asker,
    ) -> Result<Asker, Blocked> {
        use FaultReason::*;
        if request.pasid.is_some() && request.execute {
            return Err(stop(ExecuteRequestUnsupported, entry.fault_disable));
        }
        let asker = Asker {
            supervisor: asker.supervisor || request.pasid.is_none() && bit(context.words[1], 20),
            ..*asker
        };
        if asker.supervisor && !bit(entry.words[2], 0) {
            return Err(stop(SupervisorRequestDisabled, entry.fault_disable));
        }
        Ok(asker)
    }

    /// Translates by a PASID-table entry, and fills the IOTLB. The rights are those of the page.
    pub(crate) fn map_by_entry(
        &mut self,
        request: &Request,
        pasid: u32,
        entry: &CachedPasid,
        asker: &Asker,
    ) -> Result<Mapping, Blocked> {
        use FaultReason::*;
        let source_id = request.source_id.as_u16();
        let fault_disable = entry.fault_disable;
        let domain = entry.domain();
        let address = request.address.as_u64();
        let kind = entry.kind();
        let tlb_pasid = request.pasid.map(|pasid| pasid.as_u32());
        let tlb_entry = |value, last| IotlbEntry {
            last,
            value,
            domain,
            pasid,
            kind,
            fault_disable,
        };
        let mapping = match self.map_scalable(&entry.words, kind, pasid, address, asker) {
            Ok(mapping) => mapping,
            Err(stopped) => {
                if stopped.may_cache && self.caches_faults() {
                    let block = Block::around(address, 12);
                    let value = IotlbValue::Faulting(Some(stopped.reason));
                    self.caches.insert_iotlb(
                        source_id,
                        tlb_pasid,
                        block.first,
                        tlb_entry(value, block.last),
                    );
                }
                return Err(stop(stopped.reason, fault_disable));
            }
        };
        if bits::is_interrupt_address(mapping.host + (address - mapping.block.first)) {
            return Err(stop(InterruptAddress, fault_disable));
        }
        // The entry's rights are those of a request with its tag: RID_PRIV makes all requests
        // without PASID supervisor ones.
        let rights = if request.pasid.is_none() && asker.supervisor {
            Rights {
                user: true,
                first_write: mapping.rights.first_write || !mapping.rights.write_protect,
                ..mapping.rights
            }
        } else {
            mapping.rights
        };
        let value = IotlbValue::Page {
            host: mapping.host,
            rights,
            dirty: mapping.dirty,
        };
        self.caches.insert_iotlb(
            source_id,
            tlb_pasid,
            mapping.block.first,
            tlb_entry(value, mapping.block.last),
        );
        Ok(mapping)
    }

    /// Translates by a PASID-table entry.
    fn map_scalable(
        &mut self,
        words: &[u64; 8],
        kind: Kind,
        pasid: u32,
        address: u64,
        asker: &Asker,
    ) -> Result<Mapping, WalkStop> {
        use FaultReason::*;
        let domain = words[1] as u16;
        let snooped = bit(words[1], 23);
        let width = field(words[0], 4, 2);
        let second = SecondStage {
            root: page(words[0]),
            levels: 2 + width as u8,
            limit_bits: self.config.second_stage_bits(width),
            domain,
            snooped,
            accessed_dirty: bit(words[0], 9),
            io_permissions: self.registers.second_stage_io_permissions(),
            memory_types: bit(words[1], 26),
        };
        match kind {
            Kind::First | Kind::Nested => {
                let five_level = field(words[2], 3, 2) == 1;
                let top_bit = if five_level { 56 } else { 47 };
                let upper = address >> top_bit;
                if upper != 0 && upper != u64::MAX >> top_bit {
                    return Err(AddressNotCanonical.into());
                }
                let first = FirstStage {
                    root: page(words[2]),
                    levels: if five_level { 5 } else { 4 },
                    domain,
                    pasid,
                    snooped,
                    extended_accessed: bit(words[2], 7),
                    write_protect: bit(words[2], 4),
                    nested: (kind == Kind::Nested).then_some(second),
                };
                self.walk_first(&first, address, asker)
            }
            Kind::Second => {
                if address & bits::from_bit(second.limit_bits) != 0 {
                    return Err(AddressBeyondSecondStage.into());
                }
                self.walk_second_only(&second, address, asker, false)
            }
            Kind::PassThrough | Kind::Legacy => {
                if address & self.beyond_host() != 0 {
                    return Err(AddressBeyondHostWidth.into());
                }
                Ok(identity(address))
            }
        }
    }

    /// Fetches, checks and caches a scalable-mode context entry.
    fn fetch_scalable_context(&mut self, source_id: u16) -> Result<CachedContext, Blocked> {
        let mut words = [0; 4];
        let result = self.read_scalable_context(source_id, &mut words);
        let context = CachedContext {
            words,
            domain: None,
            blocked: result.err(),
        };
        if let Err(blocked) = result {
            let unreadable = matches!(
                blocked.reason,
                FaultReason::ScalableRootTableUnreadable
                    | FaultReason::ScalableContextTableUnreadable
            );
            if self.caches_faults() && !unreadable {
                self.caches.insert_context(source_id, context);
            }
            return Err(blocked);
        }
        self.caches.insert_context(source_id, context);
        Ok(context)
    }

    fn read_scalable_context(
        &mut self,
        source_id: u16,
        words: &mut [u64; 4],
    ) -> Result<(), Blocked> {
        use FaultReason::*;
        let snooped = self.config.has(Ecap::COHERENCY);
        let beyond = self.beyond_host();
        let root_at = page(self.registers.root) + 16 * u64::from(source_id >> 8);
        let halves: [u64; 2] = self
            .fetch(root_at, snooped)
            .ok_or(stop(ScalableRootTableUnreadable, false))?;
        let half = halves[usize::from(source_id >> 7 & 1)];
        if !bit(half, 0) {
            return Err(stop(ScalableRootEntryNotPresent, false));
        }
        if half & (0xffe | beyond) != 0 {
            return Err(stop(ScalableRootEntryReserved, false));
        }
        let at = page(half) + 32 * u64::from(source_id & 0x7f);
        *words = self
            .fetch_pieces(at, snooped)
            .ok_or(stop(ScalableContextTableUnreadable, false))?;
        let [q0, q1, q2, q3] = *words;
        let fault_disable = bit(q0, 1);
        if !bit(q0, 0) {
            return Err(stop(ScalableContextEntryNotPresent, fault_disable));
        }
        let absent = |feature, mask| if self.config.has(feature) { 0 } else { mask };
        let reserved0 = 0x180
            | beyond
            | absent(Ecap::DEVICE_TLB, 1 << 2)
            | absent(Ecap::REQUESTS_WITH_PASID, 1 << 3)
            | absent(Ecap::PAGE_REQUESTS, 1 << 4)
            | absent(Ecap::HOST_PERMISSION_TABLES, 1 << 5)
            | absent(Ecap::PASID_IN_TRANSLATED_REQUESTS, 1 << 6);
        let reserved1 = 0xffff_ffff_ffe0_0000
            | absent(Ecap::RID_PASID, 0xf_ffff)
            | absent(Ecap::RID_PRIV, 1 << 20);
        if q0 & reserved0 != 0 || q1 & reserved1 != 0 || q2 != 0 || q3 != 0 {
            return Err(stop(ScalableContextEntryReserved, fault_disable));
        }
        let contradictory = bit(q0, 4) && !bit(q0, 2)
            || bit(q0, 6) && !bit(q0, 3)
            || field(q1, 19, 0) >> (field(q0, 11, 9) + 13) != 0;
        if contradictory {
            return Err(stop(ScalableContextEntryInvalid, fault_disable));
        }
        Ok(())
    }

    /// Fetches, checks and caches a PASID-table entry.
    fn fetch_pasid(
        &mut self,
        source_id: u16,
        pasid: u32,
        context: &CachedContext,
    ) -> Result<CachedPasid, Blocked> {
        let mut entry = CachedPasid {
            words: [0; 8],
            fault_disable: bit(context.words[0], 1),
            blocked: None,
        };
        let result = self.read_pasid(pasid, context, &mut entry);
        if let Err(reason) = result {
            let blocked = stop(reason, entry.fault_disable);
            let unreadable = matches!(
                reason,
                FaultReason::PasidDirectoryUnreadable | FaultReason::PasidTableUnreadable
            );
            if self.caches_faults() && !unreadable {
                // Tagged with domain-id 0 (§6.2.3).
                let cached = CachedPasid {
                    words: [0; 8],
                    blocked: Some(blocked),
                    ..entry
                };
                self.caches.insert_pasid(source_id, pasid, cached);
            }
            return Err(blocked);
        }
        self.check_pasid_rules(source_id, pasid, &entry.words);
        self.caches.insert_pasid(source_id, pasid, entry);
        Ok(entry)
    }

    fn read_pasid(
        &mut self,
        pasid: u32,
        context: &CachedContext,
        entry: &mut CachedPasid,
    ) -> Result<(), FaultReason> {
        use FaultReason::*;
        let snooped = self.config.has(Ecap::COHERENCY);
        let beyond = self.beyond_host();
        let directory_at = page(context.words[0]) + 8 * u64::from(pasid >> 6);
        let [directory] = self
            .fetch(directory_at, snooped)
            .ok_or(PasidDirectoryUnreadable)?;
        entry.fault_disable |= bit(directory, 1);
        if !bit(directory, 0) {
            return Err(PasidDirectoryEntryNotPresent);
        }
        if directory & (0xffc | beyond) != 0 {
            return Err(PasidDirectoryEntryReserved);
        }
        let at = page(directory) + 64 * u64::from(pasid & 0x3f);
        entry.words = self.fetch_pieces(at, snooped).ok_or(PasidTableUnreadable)?;
        let words = &entry.words;
        entry.fault_disable |= bit(words[0], 1);
        if !bit(words[0], 0) {
            return Err(PasidEntryNotPresent);
        }
        let reserved = self.reserved_pasid_bits();
        if words
            .iter()
            .zip(reserved)
            .any(|(word, reserved)| word & reserved != 0)
        {
            return Err(PasidEntryReserved);
        }
        if !self.is_pasid_entry_supported(words) {
            return Err(PasidEntryInvalid);
        }
        Ok(())
    }

    /// The reserved bits of a present PASID-table entry, absent features included.
    fn reserved_pasid_bits(&self) -> [u64; 8] {
        let beyond = self.beyond_host();
        let absent = |feature, mask: u64| if self.config.has(feature) { 0 } else { mask };
        let mut reserved = [0, 0, 0, u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX];
        // What lies beyond the host address width is no part of the pointers: it is reserved
        // whether or not PGTT uses them.
        reserved[0] = 0xc20
            | beyond
            | absent(Ecap::SECOND_STAGE, !0xfff | 1 << 9 | 0b111 << 2)
            | absent(Ecap::SECOND_STAGE_ACCESSED_DIRTY, 1 << 9);
        let beyond_domain = bits::from_bit(self.config.domain_id_bits()) & 0xffff;
        reserved[1] = 0x8888_8888_f87f_0000
            | beyond_domain
            | absent(Ecap::PAGE_WALK_COHERENCY, 1 << 23)
            | absent(Ecap::SNOOP_CONTROL, 1 << 24)
            | absent(Ecap::MEMORY_TYPES, 0xffff_ffff_0000_0000 | 0b11 << 25);
        reserved[2] = 0xf02
            | beyond
            | absent(Ecap::FIRST_STAGE, !0xfff | 0b1_1100)
            | absent(Ecap::SUPERVISOR_REQUESTS, 1)
            | absent(Ecap::EXTENDED_ACCESSED, 1 << 7);
        if self.config.has(Ecap::HOST_PERMISSION_TABLES) {
            // HPTE is not modelled: its fields are ignored, as with HPTE=0.
            reserved[4] = 0xff8 | beyond;
            reserved[5] = 0xffff_ffff_ffff_0000 | beyond_domain;
        }
        reserved
    }

    /// Fault 0x5B: AW, PGTT, FSPM, and the nested first-stage root.
    fn is_pasid_entry_supported(&self, words: &[u64; 8]) -> bool {
        let width = field(words[0], 4, 2);
        let translation = field(words[0], 8, 6);
        let has = |feature| self.config.has(feature);
        let supported = match translation {
            1 => has(Ecap::FIRST_STAGE),
            2 => has(Ecap::SECOND_STAGE),
            3 => has(Ecap::NESTED),
            4 => has(Ecap::PASS_THROUGH),
            _ => false,
        };
        if !supported {
            return false;
        }
        if matches!(translation, 2 | 3) && !self.config.supports_width(width) {
            return false;
        }
        if matches!(translation, 1 | 3) {
            let paging = match field(words[2], 3, 2) {
                0 => true,
                1 => self.config.has_cap(Cap::FIRST_STAGE_5_LEVEL),
                _ => false,
            };
            if !paging {
                return false;
            }
        }
        let limit = bits::from_bit(self.config.second_stage_bits(width));
        !(translation == 3 && page(words[2]) & limit != 0)
    }

    /// Reads an entry in 16-byte pieces, in the configured order.
    fn fetch_pieces<const N: usize>(&mut self, at: u64, snooped: bool) -> Option<[u64; N]> {
        let mut words = [0; N];
        let pieces = N / 2;
        for step in 0..pieces {
            let piece = match self.config.fetch_order {
                FetchOrder::Ascending => step,
                FetchOrder::Descending => pieces - 1 - step,
            };
            let read: [u64; 2] = self.fetch(at + 16 * piece as u64, snooped)?;
            words[2 * piece..2 * piece + 2].copy_from_slice(&read);
        }
        Some(words)
    }

    /// What a device finds at a translated address that is no memory.
    pub(crate) fn note_outside(&mut self, address: u64) {
        self.violation(Violation::DmaOutsideMemory { address });
    }
}

/// The fault of a missing W (`write`) or R.
pub(crate) const fn denied(write: bool, legacy: bool) -> FaultReason {
    match (write, legacy) {
        (true, true) => FaultReason::LegacyWriteDenied,
        (false, true) => FaultReason::LegacyReadDenied,
        (true, false) => FaultReason::WriteDenied,
        (false, false) => FaultReason::ReadDenied,
    }
}

/// A pass-through page.
fn identity(address: u64) -> Mapping {
    let block = Block::around(address, 12);
    Mapping {
        block,
        host: block.first,
        rights: Rights::ALL,
        dirty: true,
    }
}

fn located(mapping: &Mapping, address: u64) -> Located {
    Located {
        host: mapping.host + (address - mapping.block.first),
        last: mapping.host + (mapping.block.last - mapping.block.first),
    }
}
