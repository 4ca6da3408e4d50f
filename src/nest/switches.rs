//! A device's own switches for PASIDs and ATS while it is assigned: on once its context entry allows what
//! they make it try, off before anything of it is taken away (§4.5.1, §4.5.2).

use crate::arch::id::SourceId;
use crate::mem::Platform;
use crate::nest::device::{DeviceConfig, DeviceSwitches};
use crate::unit::{ConfigurationSpace, DeviceAbilities, DeviceCapabilities, DeviceCapabilityError};

/// Configuration space of one function, as the platform reaches it.
struct Function<'a, H> {
    h: &'a H,
    source_id: SourceId,
}

impl<H: Platform> ConfigurationSpace for Function<'_, H> {
    fn read32(&self, offset: u16) -> u32 {
        self.h.read_configuration(self.source_id, offset)
    }

    fn write16(&mut self, offset: u16, value: u16) {
        self.h.write_configuration(self.source_id, offset, value);
    }

    fn write32(&mut self, offset: u16, value: u32) {
        self.write16(offset, value as u16);
        self.write16(offset.saturating_add(2), (value >> 16) as u16);
    }
}

/// Switches a device on, as far as its unit lets it: PASIDs of `pasid_bits` bits, and ATS by policy.
/// What it may not use is switched off.
///
/// # Errors
///
/// [`DeviceCapabilityError`]; the device is off then as far as it can be.
pub(super) fn turn_on<H: Platform>(
    h: &H,
    config: &DeviceConfig,
    pasid_bits: u8,
) -> Result<(), DeviceCapabilityError> {
    if config.switches == DeviceSwitches::ByEmbedder {
        return Ok(());
    }
    let device_tlb = config.address_translation.device_tlb();
    // The PASID switch of a virtual function is that of its physical function.
    let is_virtual = device_tlb.is_some_and(|tlb| tlb.physical_function != config.source_id);
    let wanted = DeviceAbilities {
        pasid_bits: if is_virtual { 0 } else { pasid_bits },
        page_requests: 0,
        address_translation: device_tlb.is_some(),
    };
    let mut space = Function {
        h,
        source_id: config.source_id,
    };
    let found = DeviceCapabilities::find(&space)?;
    found.enable(&mut space, &wanted)?;
    let switched = found.confirm(&space, &wanted);
    if switched.is_err() {
        found.disable(&mut space);
    }
    switched
}

/// Switches a device off: it asks for no more translations.
///
/// # Errors
///
/// [`DeviceCapabilityError`]: it may be on.
pub(super) fn turn_off<H: Platform>(
    h: &H,
    config: &DeviceConfig,
) -> Result<(), DeviceCapabilityError> {
    if config.switches == DeviceSwitches::ByEmbedder {
        return Ok(());
    }
    let mut space = Function {
        h,
        source_id: config.source_id,
    };
    let found = DeviceCapabilities::find(&space)?;
    found.disable(&mut space);
    found.confirm(&space, &DeviceAbilities::default())
}
