//! One emulated machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::edu::{BASES, Edu, SOURCE_IDS};
use crate::emulator::{Emulator, Operation, StartError};
use crate::hypervisor::QtestHypervisor;
use crate::nvme::{self, Nvme};
use crate::options::Options;
use crate::pci::Pci;
use crate::ram::{Ram, RamLayout};
use crate::registers::QtestRegisters;

/// The port that resets the machine, and the value that does.
const RESET_PORT: u16 = 0xcf9;
const RESET: u8 = 0x06;

/// How long a reset may take; it takes about a millisecond.
const RESET_TIMEOUT: Duration = Duration::from_secs(10);

/// A machine with one remapping unit, memory and a hypervisor. Behind the unit are two `edu` devices,
/// two NVMe controllers, an e1000e network card and a virtio device, the last two only there.
pub struct Machine {
    emulator: Arc<Emulator>,
    ram: Arc<Ram>,
    hypervisor: QtestHypervisor,
    edu: [Edu; 2],
}

impl Machine {
    /// Starts a machine. Translation is off, memory is 0, and the devices may do DMA.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left running then.
    pub fn new(options: &Options) -> Result<Self, StartError> {
        let layout = RamLayout::new(options.ram_bytes)?;
        let file = Ram::file(&layout)?;
        let ram = Arc::new(Ram::map(&file, layout)?);
        let emulator = Arc::new(Emulator::start(options, &file)?);
        let pci = Pci::new(&emulator);
        set_up(&pci);
        let find = |index| {
            Edu::find(&emulator, &ram, index).map_err(|error| StartError::Buffer(index, error))
        };
        let edu = [find(0)?, find(1)?];
        Ok(Self {
            hypervisor: QtestHypervisor::new(&ram, pci),
            emulator,
            ram,
            edu,
        })
    }

    /// The unit's registers.
    pub fn registers(&self) -> QtestRegisters {
        QtestRegisters::new(&self.emulator)
    }

    /// The hypervisor that the library is to call.
    pub fn hypervisor(&self) -> &QtestHypervisor {
        &self.hypervisor
    }

    /// The machine's configuration space.
    pub fn pci(&self) -> Pci {
        Pci::new(&self.emulator)
    }

    /// Device 0 at 00:02.0 or 1 at 00:11.0.
    ///
    /// # Panics
    ///
    /// With any other number.
    pub fn edu(&self, index: usize) -> Edu {
        self.edu[index].clone()
    }

    /// Disk controller 0 at 00:03.0 or 1 at 00:04.0.
    ///
    /// # Panics
    ///
    /// With any other number.
    pub fn nvme(&self, index: usize) -> Nvme {
        Nvme::new(&self.emulator, index)
    }

    /// The emulator's process.
    pub fn process_id(&self) -> u32 {
        self.emulator.process_id()
    }

    /// What memory there is, and for what.
    pub fn ram(&self) -> RamLayout {
        self.ram.layout()
    }

    /// Brings the machine back to what [`new`](Self::new) gave, in a fraction of the time: the unit
    /// and the devices are reset, memory is 0, and the hypervisor is a new one.
    ///
    /// Devices of [`Options::devices`] have to be set up again.
    ///
    /// # Panics
    ///
    /// When the emulator is lost, or does not reset the machine.
    pub fn reset(&mut self) {
        let pci = self.pci();
        // Something that the reset changes, to see that it is over.
        pci.set_up(SOURCE_IDS[0], BASES[0]);
        self.emulator
            .perform(&[Operation::PortWrite8(RESET_PORT, RESET)]);
        let deadline = Instant::now() + RESET_TIMEOUT;
        while !pci.is_reset(SOURCE_IDS[0]) {
            assert!(Instant::now() < deadline, "the machine does not reset");
        }
        self.ram.clear();
        set_up(&pci);
        for edu in &self.edu {
            edu.clear();
        }
        self.hypervisor = QtestHypervisor::new(&self.ram, pci);
    }
}

/// Sets up the devices that do DMA.
fn set_up(pci: &Pci) {
    let edu = SOURCE_IDS.into_iter().zip(BASES);
    let nvme = nvme::SOURCE_IDS.into_iter().zip(nvme::BASES);
    for (source_id, base) in edu.chain(nvme) {
        pci.set_up(source_id, base);
    }
}
