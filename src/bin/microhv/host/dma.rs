//! A device with memory of its own: what is in it, and where the device finds it.

use vtd_nest::arch::address::{Hpa, Iova, PAGE_SIZE_BYTES};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::FaultRecord;
use vtd_nest::mem::{FrameError, FrameRun, Frames, HostMemory, MmioRegisters, Owner};
use vtd_nest::paging::Rights;
use vtd_nest::unit::discovery::RequesterIds;
use vtd_nest::unit::{OwnDevice, OwnDeviceError, OwnMapping, QueueError, Step, Unit};

use crate::console::println;
use crate::environment::Environment;

/// Pages of a device's memory, as a power of two.
const ORDER: u8 = 3;
/// Of these the device is given the first ones; the rest is there to be aimed at.
const GIVEN_PAGES: u64 = 6;
/// Fault records read in a row.
const MAXIMUM_FAULTS: u32 = 8;

/// Why a device cannot do DMA.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(super) enum DmaError {
    Frames(FrameError),
    Device(OwnDeviceError),
    Queue(QueueError),
}

/// A device in a domain of its own, with eight pages of memory of which it is given six.
pub(super) struct Dma<'a> {
    pub(super) environment: &'a Environment,
    pub(super) unit: &'a Unit<MmioRegisters>,
    device: OwnDevice,
    memory: FrameRun,
}

/// What one device has left of faults.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Faults {
    /// Those of the device that was asked for, at the page that was asked for.
    pub(super) expected: u64,
    /// Others.
    pub(super) others: u64,
}

impl<'a> Dma<'a> {
    /// Takes memory for a device, and lets the device at it.
    pub(super) fn set_up(
        environment: &'a Environment,
        unit: &'a Unit<MmioRegisters>,
        source_id: SourceId,
    ) -> Result<Self, DmaError> {
        let memory = environment
            .allocate(Owner::HYPERVISOR, ORDER)
            .map_err(DmaError::Frames)?;
        let mut dma = Self {
            environment,
            unit,
            device: OwnDevice::new(RequesterIds::of(source_id)),
            memory,
        };
        let given = OwnMapping {
            input: dma.input(0),
            output: dma.output(0),
            len_bytes: GIVEN_PAGES * PAGE_SIZE_BYTES,
            rights: Rights::READ_WRITE,
        };
        match dma.device.let_in(environment, unit, [given]) {
            Ok(()) => {
                let mut pci = environment.pci().lock();
                pci.set_bus_master(source_id, true);
                drop(pci);
                Ok(dma)
            }
            Err(error) => {
                // It is blocked, or nothing was published: the frames are nobody's if it is out.
                if dma.device.take_out(environment, unit).is_ok() {
                    environment.free(dma.memory);
                }
                Err(DmaError::Device(error))
            }
        }
    }

    /// Cuts the device off; its memory stays until [`free`](Self::free).
    pub(super) fn cut_off(&mut self) -> Result<(), DmaError> {
        self.device
            .take_out(self.environment, self.unit)
            .map_err(DmaError::Queue)
    }

    /// Gives the memory back. The device is silent and cut off.
    pub(super) fn free(mut self) -> Result<(), DmaError> {
        self.cut_off()?;
        let mut pci = self.environment.pci().lock();
        pci.set_bus_master(self.source_id(), false);
        drop(pci);
        self.environment.free(self.memory);
        Ok(())
    }

    pub(super) fn source_id(&self) -> SourceId {
        self.device.requesters().own()
    }

    /// The domain-id of the device, or 0 while it has none.
    pub(super) fn domain_id(&self) -> u64 {
        self.device
            .domain_id()
            .map_or(0, |id| u64::from(id.as_u16()))
    }

    /// Where the device finds a byte of its memory. No two devices have the same addresses, and
    /// none is the host-physical one.
    pub(super) fn input(&self, offset: u64) -> Iova {
        let base = 0x10_0000_0000 | u64::from(self.source_id().as_u16()) << 20;
        Iova::new(base + offset)
    }

    /// Where a byte of the memory is.
    pub(super) fn output(&self, offset: u64) -> Hpa {
        Hpa::new(self.memory.address().as_u64() + offset)
    }

    /// The page behind those that the device is given.
    pub(super) const fn beyond() -> u64 {
        GIVEN_PAGES * PAGE_SIZE_BYTES
    }

    pub(super) fn read(&self, offset: u64) -> u64 {
        self.environment.read64(self.output(offset))
    }

    pub(super) fn write(&self, offset: u64, value: u64) {
        self.environment.write64(self.output(offset), value);
    }

    /// Makes what was written visible before the device is told.
    pub(super) fn fence(&self) {
        self.environment.fence();
    }

    /// Fills a page with a value in every quadword.
    pub(super) fn fill_page(&self, offset: u64, value: u64) {
        for at in (0..PAGE_SIZE_BYTES).step_by(8) {
            self.write(offset + at, value);
        }
    }

    /// Whether every quadword of a page has a value.
    pub(super) fn is_page_all(&self, offset: u64, value: u64) -> bool {
        (0..PAGE_SIZE_BYTES)
            .step_by(8)
            .all(|at| self.read(offset + at) == value)
    }

    /// Takes all fault records, prints and explains them, and counts those of this device at a page.
    pub(super) fn faults_at(&self, page: u64) -> Faults {
        drain(self.environment, self.unit, |record| {
            record.source_id() == self.source_id() && record.address().as_u64() == page
        })
    }

    /// The same for interrupt requests that this device was refused.
    pub(super) fn refused_interrupts(&self) -> Faults {
        drain(self.environment, self.unit, |record| {
            record.source_id() == self.source_id() && is_of_interrupt(record)
        })
    }
}

/// Whether a record is that of an interrupt request: reasons 20h to 27h (§7.1.3).
fn is_of_interrupt(record: &FaultRecord) -> bool {
    (0x20..0x28).contains(&record.reason_code())
}

/// Takes all fault records, prints them and what the tables say of them.
fn drain(
    environment: &Environment,
    unit: &Unit<MmioRegisters>,
    is_expected: impl Fn(&FaultRecord) -> bool,
) -> Faults {
    let mut faults = Faults::default();
    for _ in 0..MAXIMUM_FAULTS {
        let Some(record) = unit.next_fault() else {
            break;
        };
        println!("                  {record}");
        if !is_of_interrupt(&record) {
            let print_step = |step: &Step| println!("                    {step}");
            let request = unit.request_of(&record);
            let explanation = unit.explain(environment, &request, print_step);
            println!("                    {explanation}");
        }
        if is_expected(&record) {
            faults.expected += 1;
        } else {
            faults.others += 1;
        }
    }
    faults
}
