//! The model in process, in each of its profiles and cache modes.

use std::cell::RefCell;
use std::collections::BTreeSet;

use vtd_model::{
    Access, CacheMode, DeliveryMode as Raised, DeviceTlbMode, Initiator, Machine, ModelConfig,
    ModelUnit, Pace, QueueOrder, Request,
};
use vtd_nest::arch::address::{AddressWidth, Iova};
use vtd_nest::arch::capability::{CapabilityField, ExtendedCapabilityField};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::interrupt::{DeliveryMode, Interrupt};
use vtd_nest::mem::{HostMemory, Registers};

use super::{Ability, Bench, DeviceTlbUse, HostRange, Layout, Profile, Requester, StartError};

/// A configuration of the model.
pub(crate) struct ModelProfile {
    name: String,
    config: ModelConfig,
}

impl ModelProfile {
    /// Every profile in every cache mode.
    pub(crate) fn all() -> Vec<Self> {
        let profiles = [
            ("nesting-server", ModelConfig::nesting_server()),
            (
                "nesting-client-noncoherent",
                ModelConfig::nesting_client_noncoherent()
                    .with_capability(CapabilityField::FIRST_STAGE_1GIB_PAGES, 0)
                    // Less than what guests are shown.
                    .with_capability(CapabilityField::MAXIMUM_ADDRESS_MASK, 4),
            ),
            (
                "nesting-server-erratum",
                ModelConfig::nesting_server_erratum(),
            ),
            (
                "caching-mode",
                ModelConfig::caching_mode().with_interrupt_remapping(),
            ),
            ("everything-on", ModelConfig::everything_on()),
            ("legacy-server", ModelConfig::legacy_server()),
            ("qemu-second-stage", ModelConfig::qemu_second_stage()),
            ("qemu-first-stage", ModelConfig::qemu_first_stage()),
        ];
        let modes = [
            ("hoarder", CacheMode::Hoarder),
            ("tiny", CacheMode::Tiny),
            ("none", CacheMode::None),
        ];
        let late = |config: ModelConfig| config.with_queue_pace(Pace::After(20_000));
        let narrow = 1 << AddressWidth::Bits39.field();
        let mut all = vec![
            Self {
                name: "legacy-client-noncoherent/hoarder".into(),
                config: ModelConfig::legacy_server()
                    .with_extended(ExtendedCapabilityField::COHERENCY, 0)
                    .with_capability(CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS, narrow),
            },
            Self {
                name: "legacy-caching-mode/hoarder".into(),
                config: ModelConfig::legacy_server()
                    .with_capability(CapabilityField::CACHING_MODE, 1),
            },
            Self {
                name: "legacy-write-buffered/hoarder".into(),
                config: ModelConfig::write_buffered(),
            },
            Self {
                name: "legacy-device-tlb/hoarder".into(),
                config: ModelConfig::legacy_server()
                    .with_extended(ExtendedCapabilityField::DEVICE_TLB, 1),
            },
            Self {
                name: "nesting-server-late/hoarder".into(),
                config: late(ModelConfig::nesting_server()),
            },
            Self {
                name: "device-tlb-server-late/hoarder".into(),
                config: late(ModelConfig::device_tlb_server())
                    .with_queue_order(QueueOrder::Shuffled, 0x5eed),
            },
        ];
        for (profile, config) in profiles {
            for (mode, cache_mode) in modes {
                all.push(Self {
                    name: format!("{profile}/{mode}"),
                    config: config.clone().with_cache_mode(cache_mode),
                });
            }
        }
        all
    }
}

impl Profile for ModelProfile {
    fn bench(&self) -> &'static str {
        "model"
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn start(&self, units: usize) -> Result<Box<dyn Bench>, StartError> {
        let machine = Machine::new(self.config.clone());
        let more = (1..units).map(|_| {
            let clock = machine.hypervisor.clock();
            let unit = ModelUnit::new(self.config.clone(), &machine.memory, clock);
            machine.hypervisor.attach(&unit);
            unit
        });
        let units = [machine.unit.clone()].into_iter().chain(more).collect();
        Ok(Box::new(ModelBench {
            machine,
            units,
            with_device_tlb: RefCell::default(),
        }))
    }
}

struct ModelBench {
    machine: Machine,
    units: Vec<ModelUnit>,
    /// Devices whose own TLB is in use.
    with_device_tlb: RefCell<BTreeSet<SourceId>>,
}

impl ModelBench {
    fn request(requester: Requester, address: Iova, access: Access) -> Request {
        let mut request = Request::new(requester.source_id, requester.pasid, address, access);
        request.privileged = requester.privileged;
        request.execute = requester.execute;
        request
    }

    /// The unit that covers a device: the last one its own, the first one everything else.
    fn unit_of(&self, source_id: SourceId) -> &ModelUnit {
        let index = usize::from(source_id == self.device(1) && self.units.len() > 1);
        &self.units[index]
    }

    /// The device as it sends its requests if its own TLB is in use.
    fn through_device_tlb(&self, requester: Requester) -> Option<Initiator<'_>> {
        let source_id = requester.source_id;
        self.with_device_tlb.borrow().contains(&source_id).then(|| {
            let mut device = self
                .unit_of(source_id)
                .initiator(source_id)
                .through_device_tlb();
            if let Some(pasid) = requester.pasid {
                device = device.with_pasid(pasid);
            }
            if requester.privileged {
                device = device.privileged();
            }
            if requester.execute {
                device = device.executing();
            }
            device
        })
    }

    /// Moves data page by page, as far as it is not blocked.
    fn each_page(
        &self,
        requester: Requester,
        address: Iova,
        len_bytes: usize,
        access: Access,
        mut piece: impl FnMut(vtd_nest::arch::address::Hpa, std::ops::Range<usize>),
    ) {
        let mut done = 0;
        while done < len_bytes {
            let at = address.as_u64().wrapping_add(done as u64);
            let len = (len_bytes - done).min(4096 - (at % 4096) as usize);
            let request = Self::request(requester, Iova::new(at), access);
            let unit = self.unit_of(requester.source_id);
            let Ok(found) = unit.translate(&request) else {
                return;
            };
            piece(found.host, done..done + len);
            done += len;
        }
    }
}

impl Bench for ModelBench {
    fn registers(&self, unit: usize) -> Option<Box<dyn Registers>> {
        let unit = self.units.get(unit)?.clone();
        Some(Box::new(unit))
    }

    fn memory(&self) -> &dyn HostMemory {
        &self.machine.memory
    }

    fn layout(&self) -> Layout {
        Layout {
            frames: HostRange::new(0x1000_0000, 256 << 20),
            guests: HostRange::new(0x4000_0000, 128 << 20),
            nobodys: HostRange::new(0x3000_0000, 16 << 20),
        }
    }

    fn host_address_width(&self) -> u8 {
        self.machine.unit.config().host_address_width
    }

    fn device(&self, index: usize) -> SourceId {
        SourceId::from_u16([0x0010, 0x0288, 0x0300, 0x0301][index])
    }

    fn has(&self, ability: Ability) -> bool {
        let config = self.machine.unit.config();
        let reports = |field| config.extended.field(field) != 0;
        match ability {
            Ability::RequestsWithPasid | Ability::PrivilegedRequests => {
                reports(ExtendedCapabilityField::REQUESTS_WITH_PASID)
            }
            Ability::SeveralUnits | Ability::QueueOffAtError => true,
            Ability::UpdatesObeyReadOnly => !config.erratum_772415,
            Ability::ArchitecturalCaches => config.cache_mode != CacheMode::None,
            Ability::FlushedLinesOnly => {
                // Second-stage tables of legacy mode go by another field.
                let snoops = if reports(ExtendedCapabilityField::SCALABLE_MODE)
                    && reports(ExtendedCapabilityField::SECOND_STAGE)
                {
                    reports(ExtendedCapabilityField::PAGE_WALK_COHERENCY)
                } else {
                    reports(ExtendedCapabilityField::COHERENCY)
                };
                config.capability.field(CapabilityField::CACHING_MODE) == 0 && !snoops
            }
            Ability::DeviceTlb => reports(ExtendedCapabilityField::DEVICE_TLB),
            Ability::SeesInterrupts | Ability::BlocksCompatibilityFormat => true,
            Ability::DiskControllers => false,
            Ability::PageRequests => reports(ExtendedCapabilityField::PAGE_REQUESTS),
        }
    }

    fn advance(&self, nanoseconds: u64) {
        self.machine.hypervisor.clock().advance(nanoseconds);
        for unit in &self.units {
            unit.advance();
        }
    }

    fn set_bus_master(&self, _source_id: SourceId, _enabled: bool) {
        // Devices of the model send what a scenario tells them to: remapping has to stop them.
    }

    fn dma_read(&self, requester: Requester, address: Iova, into: &mut [u8]) {
        if let Some(device) = self.through_device_tlb(requester) {
            let _ = device.read(address, into);
            return;
        }
        if !requester.privileged && !requester.execute {
            let unit = self.unit_of(requester.source_id);
            // A blocked read is seen by its data and its record.
            let _ = unit.dma_read(requester.source_id, requester.pasid, address, into);
            return;
        }
        let len_bytes = into.len();
        self.each_page(
            requester,
            address,
            len_bytes,
            Access::Read,
            |host, range| {
                self.machine.memory.copy_from(host, &mut into[range]);
            },
        );
    }

    fn dma_write(&self, requester: Requester, address: Iova, from: &[u8]) {
        if let Some(device) = self.through_device_tlb(requester) {
            let _ = device.write(address, from);
            return;
        }
        if !requester.privileged && !requester.execute {
            let unit = self.unit_of(requester.source_id);
            let _ = unit.dma_write(requester.source_id, requester.pasid, address, from);
            return;
        }
        self.each_page(
            requester,
            address,
            from.len(),
            Access::Write,
            |host, range| {
                self.machine.memory.copy_to(host, &from[range]);
            },
        );
    }

    fn violations(&self) -> Vec<String> {
        let all = self.units.iter().flat_map(ModelUnit::violations);
        all.map(|violation| format!("{violation:?}")).collect()
    }

    fn set_device_tlb(&self, source_id: SourceId, used: DeviceTlbUse) {
        let unit = self.unit_of(source_id);
        let mut with_device_tlb = self.with_device_tlb.borrow_mut();
        if used == DeviceTlbUse::Off {
            with_device_tlb.remove(&source_id);
            return;
        }
        with_device_tlb.insert(source_id);
        unit.set_ats_enabled(source_id, true);
        unit.set_device_tlb_mode(
            source_id,
            match used {
                DeviceTlbUse::Refilling => DeviceTlbMode::Refilling,
                DeviceTlbUse::Lying => DeviceTlbMode::KeepsInvalidated,
                DeviceTlbUse::Off | DeviceTlbUse::Honest => DeviceTlbMode::Hoarder,
            },
        );
    }

    fn take_interrupts(&self) -> Vec<(SourceId, Interrupt)> {
        let all = self.units.iter().flat_map(ModelUnit::take_interrupts);
        let raised = all.filter_map(|sent| {
            let raised = sent.outcome.interrupt()?;
            let delivery = match raised.delivery {
                Raised::Fixed => DeliveryMode::Fixed,
                Raised::LowestPriority => DeliveryMode::LowestPriority,
                Raised::SystemManagement => DeliveryMode::SystemManagement,
                Raised::NonMaskable => DeliveryMode::NonMaskable,
                Raised::Init => DeliveryMode::Init,
                Raised::External => DeliveryMode::External,
                Raised::Undefined(mode) => panic!("delivery mode {mode}"),
            };
            let interrupt = Interrupt {
                destination: raised.destination,
                logical: raised.is_logical,
                redirection_hint: raised.has_redirection_hint,
                level_triggered: raised.is_level,
                delivery,
                vector: raised.vector,
            };
            Some((sent.source_id, interrupt))
        });
        raised.collect()
    }

    fn set_device_silent(&self, source_id: SourceId, silent: bool) {
        self.unit_of(source_id).set_device_silent(source_id, silent);
    }
}
