//! A machine in a place that its embedder made, such as a static.
//!
//! What each store takes, in KiB of 1,024 bytes rounded up. A static takes as much in the image, too:
//! what is empty is not all zeros.
//!
//! | store | KiB |
//! |---|---|
//! | `MachineStore<4, 64, 16, 4>` | 29 |
//! | `MachineStore<8, 4096, 256, 16>` | 529 |
//! | `MachineStore<16, 65536, 1024, 64>` | 8,010 |
//! | of it: 1 device, 1 binding, 1 host domain-id, 1 shadow | 328, 124, 24, 424 bytes |
//! | `viommu::VirtualUnit<HostBinding, 8, 4096>` alone | 512 |
//! | `mem::FramePool<256, 16>`: 16,384 frames, 16 owners | 3 |
//! | `mem::FramePool<4096, 64>`: 262,144 frames, 64 owners | 33 |
//!
//! Tables on hardware, shadows' pages among them, are frames of the pool and counted there.

use crate::mem::{Hypervisor, Registers};
use crate::nest::machine::{MachineConfig, MachineError, VirtualMachine};
use crate::unit::Unit;
use crate::viommu::host::{BindError, Progress};

/// A place for one machine, which is made in it and never moved: nothing of it goes over the stack.
///
/// ```
/// use vtd_nest::nest::MachineStore;
///
/// // 4 devices, 65,536 bindings, 256 domain-ids, 16 shadows: 8 MiB.
/// static MACHINE: spin::Mutex<MachineStore<4, 65536, 256, 16>> =
///     spin::Mutex::new(MachineStore::new());
/// assert!(MACHINE.lock().get().is_none());
/// ```
///
/// The parameters and the memory that they cost are those of [`VirtualMachine`].
#[derive(Debug)]
pub struct MachineStore<
    const DEVICES: usize,
    const BINDINGS: usize,
    const DOMAINS: usize,
    const SHADOWS: usize,
> {
    machine: VirtualMachine<DEVICES, BINDINGS, DOMAINS, SHADOWS>,
    is_in_use: bool,
}

impl<const DEVICES: usize, const BINDINGS: usize, const DOMAINS: usize, const SHADOWS: usize>
    MachineStore<DEVICES, BINDINGS, DOMAINS, SHADOWS>
{
    /// A place without a machine.
    pub const fn new() -> Self {
        Self {
            machine: VirtualMachine::vacant(),
            is_in_use: false,
        }
    }

    /// Makes a machine without memory and devices, whose unit shows what all `units` can carry:
    /// [`VirtualMachine::new`] in its place.
    ///
    /// # Errors
    ///
    /// [`MachineError`]; there is no machine then, or the one that was there before.
    pub fn start<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        config: MachineConfig,
    ) -> Result<&mut VirtualMachine<DEVICES, BINDINGS, DOMAINS, SHADOWS>, MachineError> {
        if self.is_in_use {
            return Err(MachineError::InUse);
        }
        self.machine.start(h, units, config)?;
        self.is_in_use = true;
        Ok(&mut self.machine)
    }

    /// The machine, if there is one.
    pub const fn get(&self) -> Option<&VirtualMachine<DEVICES, BINDINGS, DOMAINS, SHADOWS>> {
        if self.is_in_use {
            Some(&self.machine)
        } else {
            None
        }
    }

    /// The machine, if there is one, to work on.
    pub const fn get_mut(
        &mut self,
    ) -> Option<&mut VirtualMachine<DEVICES, BINDINGS, DOMAINS, SHADOWS>> {
        if self.is_in_use {
            Some(&mut self.machine)
        } else {
            None
        }
    }

    /// Destroys the machine, if there is one: as [`VirtualMachine::destroy`]. `Done` leaves the place
    /// free for another.
    ///
    /// # Errors
    ///
    /// As [`VirtualMachine::destroy`]; the machine stays.
    pub fn destroy<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
    ) -> Result<Progress, BindError> {
        if !self.is_in_use {
            return Ok(Progress::Done);
        }
        let progress = self.machine.wind_up(h, units)?;
        self.is_in_use = progress != Progress::Done;
        Ok(progress)
    }
}

impl<const DEVICES: usize, const BINDINGS: usize, const DOMAINS: usize, const SHADOWS: usize>
    Default for MachineStore<DEVICES, BINDINGS, DOMAINS, SHADOWS>
{
    fn default() -> Self {
        Self::new()
    }
}
