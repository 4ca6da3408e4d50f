//! The PCI functions as the library asks for them: which of them hardware keeps apart, under which
//! source-ids their requests arrive; and what the platform is recognised by.

use core::arch::x86_64::__cpuid;

use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::pci::{PciFunction, PciFunctions, PciTopology};
use vtd_nest::nest::{DeviceConfig, InterruptIsolation, Isolation};
use vtd_nest::unit::discovery::{RequesterIds, TopologyError, isolation_group, requester_ids};
use vtd_nest::unit::{PciIdentity, PlatformIdentity, ProcessorModel};

use crate::pci::{Function, Pci};

/// The functions of segment 0, as found at start.
#[derive(Clone, Copy)]
pub(crate) struct Topology<'a>(pub(crate) &'a [Function]);

impl Topology<'_> {
    fn find(&self, source_id: SourceId) -> Option<&Function> {
        let mut functions = self.0.iter();
        functions.find(|function| function.source_id == source_id)
    }

    /// Under which source-ids a function's requests arrive.
    pub(crate) fn requesters(&self, source_id: SourceId) -> Result<RequesterIds, TopologyError> {
        requester_ids(source_id, self)
    }

    /// A function, to be assigned under its own source-id: with all others under which its requests
    /// arrive, and with what hardware does not keep it apart from.
    pub(crate) fn device_config(
        &self,
        source_id: SourceId,
        unit: u8,
        interrupts: InterruptIsolation,
    ) -> Result<DeviceConfig, TopologyError> {
        let group = Isolation::Group(isolation_group(source_id, self)?);
        Ok(DeviceConfig {
            aliases: *self.requesters(source_id)?.aliases(),
            ..DeviceConfig::new(source_id, source_id, unit, interrupts, group)
        })
    }
}

impl PciTopology for Topology<'_> {
    fn secondary_bus(&self, bridge: SourceId) -> Option<u8> {
        Some(self.find(bridge)?.bridge.as_ref()?.secondary_bus)
    }

    fn subordinate_bus(&self, bridge: SourceId) -> Option<u8> {
        Some(self.find(bridge)?.bridge.as_ref()?.subordinate_bus)
    }
}

impl PciFunctions for Topology<'_> {
    fn function(&self, source_id: SourceId) -> Option<PciFunction> {
        Some(self.find(source_id)?.place)
    }

    fn bridge_to(&self, bus: u8) -> Option<SourceId> {
        let leads_there = |function: &&Function| {
            let bridge = function.bridge.as_ref();
            bridge.is_some_and(|bridge| bus != 0 && bridge.secondary_bus == bus)
        };
        Some(self.0.iter().find(leads_there)?.source_id)
    }
}

/// What errata are looked up by: the processor's model, if it is Intel's, and the host bridge.
pub(crate) fn platform_identity(pci: &Pci) -> PlatformIdentity {
    let leaf = __cpuid(0);
    let is_intel =
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes) == [*b"Genu", *b"ineI", *b"ntel"];
    let host_bridge = SourceId::from_u16(0);
    let id = pci.read(host_bridge, 0);
    PlatformIdentity {
        processor: is_intel.then(|| processor_model(__cpuid(1).eax)),
        host_bridge: (id & 0xffff != 0xffff).then(|| PciIdentity {
            vendor: id as u16,
            device: (id >> 16) as u16,
            revision: pci.read(host_bridge, 8) as u8,
        }),
    }
}

/// The model that a processor's signature stands for.
fn processor_model(signature: u32) -> ProcessorModel {
    let family = (signature >> 8 & 0xf) as u16;
    let (model, extended) = ((signature >> 4 & 0xf) as u8, (signature >> 16 & 0xf) as u8);
    ProcessorModel {
        family: match family {
            0xf => family + (signature >> 20 & 0xff) as u16,
            _ => family,
        },
        model: match family {
            6 | 0xf => extended << 4 | model,
            _ => model,
        },
    }
}
