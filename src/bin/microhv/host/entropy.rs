//! A driver for the virtio entropy device (virtio 1.2, 5.4) by its modern PCI interface, with
//! `VIRTIO_F_ACCESS_PLATFORM`: its addresses are the remapping unit's to translate.

use vtd_nest::arch::address::PAGE_SIZE_BYTES;

use crate::clock;
use crate::memory::{Memory, Window};
use crate::pci::{Function, Pci};

use super::capability;
use super::dma::Dma;

/// Whether a function is this device.
pub(super) fn is_entropy(function: &Function) -> bool {
    (function.vendor_id, function.device_id) == (0x1af4, 0x1044)
}

const VENDOR_SPECIFIC: u8 = 0x09;
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
/// Vendor-specific capabilities of the device, at most.
const MAXIMUM_CAPABILITIES: usize = 8;

const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const DEVICE_STATUS: u64 = 20;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_NOTIFY_OFFSET: u64 = 30;
const QUEUE_DESCRIPTORS: u64 = 32;
const QUEUE_DRIVER: u64 = 40;
const QUEUE_DEVICE: u64 = 48;

/// `VIRTIO_F_VERSION_1` and `VIRTIO_F_ACCESS_PLATFORM`, bits 32 and 33.
const FEATURES_HIGH: u32 = 0b11;
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// Entries of the queue.
const ENTRIES: u16 = 8;
/// The device may write to the buffer.
const WRITABLE: u64 = 2 << 32;

const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x800;
const USED: u64 = PAGE_SIZE_BYTES;
pub(super) const BUFFER: u64 = 2 * PAGE_SIZE_BYTES;

const MAXIMUM_LOOKS: u32 = 1 << 13;

/// Why it gives no entropy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EntropyError {
    /// It lacks a register that every such device has.
    Registers,
    /// It does not offer, or does not take, the two features.
    Features,
    /// It used no buffer.
    Silent,
}

/// The device.
pub(super) struct Entropy {
    window: Window,
    common: u64,
    notify: (Window, u64),
    multiplier: u32,
    submitted: u16,
}

impl Entropy {
    /// The device by its configuration space, reset.
    pub(super) fn open(
        memory: &Memory,
        pci: &Pci,
        function: &Function,
    ) -> Result<Self, EntropyError> {
        let find = |kind: u8| {
            let mut all = (0..MAXIMUM_CAPABILITIES)
                .map_while(|nth| capability::find(pci, function.source_id, VENDOR_SPECIFIC, nth));
            let at = all.find(|at| pci.read(function.source_id, *at) >> 24 == kind.into())?;
            let bar = (pci.read(function.source_id, at + 4) & 0xff) as usize;
            let offset = pci.read(function.source_id, at + 8);
            let window = capability::bar(memory, function, bar)?;
            Some((at, window, u64::from(offset)))
        };
        let (_, window, common) = find(COMMON).ok_or(EntropyError::Registers)?;
        let (at, notify, offset) = find(NOTIFY).ok_or(EntropyError::Registers)?;
        let mut entropy = Self {
            window,
            common,
            notify: (notify, offset),
            multiplier: pci.read(function.source_id, at + 16),
            submitted: 0,
        };
        entropy.stop()?;
        Ok(entropy)
    }

    /// Resets the device: it forgets its queue.
    pub(super) fn stop(&mut self) -> Result<(), EntropyError> {
        self.set_status(0)?;
        for _ in 0..MAXIMUM_LOOKS {
            if self.status()? == 0 {
                return Ok(());
            }
            clock::pass_time();
        }
        Err(EntropyError::Silent)
    }

    /// Starts the device with its queue in the device's memory.
    pub(super) fn start(&mut self, dma: &Dma<'_>) -> Result<(), EntropyError> {
        self.submitted = 0;
        dma.fill_page(DESCRIPTORS, 0);
        dma.fill_page(USED, 0);
        let mut status = ACKNOWLEDGE | DRIVER;
        self.set_status(status)?;
        self.write32(DEVICE_FEATURE_SELECT, 1)?;
        let offered = self
            .window
            .read_u32(self.common + DEVICE_FEATURE)
            .ok_or(EntropyError::Registers)?;
        if offered & FEATURES_HIGH != FEATURES_HIGH {
            return Err(EntropyError::Features);
        }
        for (select, features) in [(0, 0), (1, FEATURES_HIGH)] {
            self.write32(DRIVER_FEATURE_SELECT, select)?;
            self.write32(DRIVER_FEATURE, features)?;
        }
        status |= FEATURES_OK;
        self.set_status(status)?;
        if self.status()? & FEATURES_OK == 0 {
            return Err(EntropyError::Features);
        }
        self.write16(QUEUE_SELECT, 0)?;
        self.write16(QUEUE_SIZE, ENTRIES)?;
        for (register, offset) in [
            (QUEUE_DESCRIPTORS, DESCRIPTORS),
            (QUEUE_DRIVER, AVAILABLE),
            (QUEUE_DEVICE, USED),
        ] {
            let address = dma.input(offset).as_u64();
            self.write32(register, address as u32)?;
            self.write32(register + 4, (address >> 32) as u32)?;
        }
        self.write16(QUEUE_ENABLE, 1)?;
        self.set_status(status | DRIVER_OK)
    }

    /// Has the device fill a page at an address of its own; how many bytes it says it wrote.
    pub(super) fn fill(&mut self, dma: &Dma<'_>, address: u64) -> Result<u32, EntropyError> {
        dma.write(DESCRIPTORS, address);
        dma.write(DESCRIPTORS + 8, PAGE_SIZE_BYTES | WRITABLE);
        let entry = self.submitted % ENTRIES;
        self.submitted = self.submitted.wrapping_add(1);
        dma.fence();
        // No flags; every entry of the ring names descriptor 0.
        dma.write(AVAILABLE, u64::from(self.submitted) << 16);
        dma.fence();
        let offset = self
            .window
            .read_u16(self.common + QUEUE_NOTIFY_OFFSET)
            .ok_or(EntropyError::Registers)?;
        let (notify, base) = &mut self.notify;
        notify
            .write_u16(*base + u64::from(offset) * u64::from(self.multiplier), 0)
            .ok_or(EntropyError::Registers)?;
        for _ in 0..MAXIMUM_LOOKS {
            if (dma.read(USED) >> 16) as u16 == self.submitted {
                return Ok(dma.read(USED + 8 + 8 * u64::from(entry)) as u32);
            }
            clock::pass_time();
        }
        Err(EntropyError::Silent)
    }

    fn status(&self) -> Result<u8, EntropyError> {
        self.window
            .read_u8(self.common + DEVICE_STATUS)
            .ok_or(EntropyError::Registers)
    }

    fn set_status(&mut self, status: u8) -> Result<(), EntropyError> {
        self.window
            .write_u8(self.common + DEVICE_STATUS, status)
            .ok_or(EntropyError::Registers)
    }

    fn write16(&mut self, register: u64, value: u16) -> Result<(), EntropyError> {
        self.window
            .write_u16(self.common + register, value)
            .ok_or(EntropyError::Registers)
    }

    fn write32(&mut self, register: u64, value: u32) -> Result<(), EntropyError> {
        self.window
            .write_u32(self.common + register, value)
            .ok_or(EntropyError::Registers)
    }
}
