//! The local APIC of this processor.

use vtd_nest::arch::address::{Hpa, PAGE_SIZE_BYTES};

use crate::interrupt;
use crate::memory::{Memory, MemoryError, Window};

/// Where processors have it at start.
const PAGE: Hpa = Hpa::new(0xfee0_0000);

const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS_VECTOR: u64 = 0xf0;
const SPURIOUS_ENABLED: u32 = 1 << 8;
const LOCAL_INTERRUPT_0: u64 = 0x350;
const MASKED: u32 = 1 << 16;

/// Its registers in xAPIC mode.
#[derive(Debug)]
pub(crate) struct LocalApic(Window);

impl LocalApic {
    /// The local APIC, where processors have it at start.
    pub(crate) fn open(memory: &Memory) -> Result<Self, MemoryError> {
        memory.window(PAGE, PAGE_SIZE_BYTES).map(Self)
    }

    /// Reads a register.
    pub(crate) fn read(&self, offset: u64) -> Option<u32> {
        self.0.read_u32(offset)
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        let _ = self.0.write_u32(offset, value);
    }

    /// The processor's APIC id.
    pub(crate) fn id(&self) -> u32 {
        self.read(ID).unwrap_or(0) >> 24
    }

    /// Makes it deliver the messages of devices, and none of the old interrupt controller, whose
    /// vectors are those of exceptions.
    pub(crate) fn enable(&mut self) {
        let kept = self.read(LOCAL_INTERRUPT_0).unwrap_or(0);
        self.write(LOCAL_INTERRUPT_0, kept | MASKED);
        self.write(TASK_PRIORITY, 0);
        let spurious = SPURIOUS_ENABLED | u32::from(interrupt::SPURIOUS);
        self.write(SPURIOUS_VECTOR, spurious);
    }

    /// Takes pending interrupts of a vector, and ends each; how many there were.
    pub(crate) fn take(&mut self, vector: u8) -> u64 {
        let before = interrupt::count(vector);
        interrupt::let_in();
        let taken = interrupt::count(vector).wrapping_sub(before);
        for _ in 0..taken.min(256) {
            self.write(END_OF_INTERRUPT, 0);
        }
        taken
    }
}
