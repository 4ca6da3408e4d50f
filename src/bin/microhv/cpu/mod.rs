//! The processor as the hypervisor uses it to run a guest: one narrow trait, one folder for each
//! extension behind it. Nothing outside a folder knows its extension.

mod svm;

use core::arch::x86_64::CpuidResult;

use vtd_nest::arch::address::{Gpa, Hpa};

/// The processor's extension, its pages, and why it cannot be used: the one that there is.
pub(crate) use svm::{Pages, Svm as Processor, SvmError as ProcessorError};

/// The guest's registers that exits are about.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Registers {
    /// By number, as in instructions: `RAX`, `RCX`, `RDX`, `RBX`, `RSP`, `RBP`, `RSI`, `RDI`, `R8`…
    pub(crate) general: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
}

/// Where the guest starts: 64-bit mode with the interrupts off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) rip: u64,
    pub(crate) rsp: u64,
    pub(crate) rsi: u64,
    pub(crate) cr3: u64,
    /// Address and limit of the descriptor table: 0x10 is 64-bit code, 0x18 data.
    pub(crate) gdt: (u64, u32),
}

/// Numbers of general registers.
pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const RSI: usize = 6;

/// How the guest's processor turns addresses into guest-physical ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Paging {
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    /// Whether it runs 64-bit code, with paging therefore on.
    pub(crate) is_64_bit_code: bool,
}

/// What a guest may do with a range of its physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Nothing: each access is an exit.
    None,
    /// Reads and fetches; each write is an exit.
    ReadOnly,
    /// Everything.
    Full,
}

/// An access to a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PortAccess {
    pub(crate) port: u16,
    /// Bytes: 1, 2 or 4.
    pub(crate) size: u8,
    pub(crate) is_write: bool,
    /// Whether it is one of `INS` and `OUTS`.
    pub(crate) is_string: bool,
    /// Length of the instruction in bytes.
    pub(crate) len_bytes: u8,
}

/// An access to memory that the guest may not make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MemoryAccess {
    pub(crate) address: Gpa,
    pub(crate) is_write: bool,
    pub(crate) is_fetch: bool,
    /// Whether it was the processor's own, to the guest's page tables.
    pub(crate) is_table_walk: bool,
}

/// Why the guest stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    Cpuid,
    ReadMsr(u32),
    /// Index and value.
    WriteMsr(u32, u64),
    Port(PortAccess),
    Memory(MemoryAccess),
    /// The back end's own business, which it has dealt with.
    Handled,
    /// The processor gave up the guest: a triple fault.
    Shutdown,
    /// The processor was sent an INIT.
    Init,
    /// The processor refused the guest's state.
    InvalidState,
    /// A reason that nobody asked for, by the extension's number.
    Unexpected(u64),
}

/// An exception for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exception {
    /// `#UD`
    InvalidOpcode,
    /// `#GP` with error code 0.
    GeneralProtection,
}

/// Why a range cannot be hidden or protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MapError {
    /// The range goes past what the guest has of the address space.
    OutOfReach(Hpa),
    /// The range is the hypervisor's, and the guest would get at it.
    Hypervisor(Hpa),
    /// All table pages are in use.
    Full,
}

/// One processor, running one guest whose physical addresses are the host's.
pub(crate) trait Cpu {
    /// Runs the guest until it stops.
    fn enter(&mut self) -> Exit;

    /// The guest's registers.
    fn registers(&self) -> &Registers;

    /// The guest's registers, to change them.
    fn registers_mut(&mut self) -> &mut Registers;

    /// How the guest's addresses are translated.
    fn paging(&self) -> Paging;

    /// Steps over the instruction that the guest stopped at.
    fn skip(&mut self, len_bytes: u8);

    /// Raises an exception when the guest runs again.
    fn raise(&mut self, exception: Exception);

    /// Changes what the guest may do with the pages from `start` to before `end`;
    /// [`flush`](Self::flush) makes it hold.
    fn set_access(&mut self, start: Hpa, end: Hpa, access: Access) -> Result<(), MapError>;

    /// Forgets all translations of the guest before it runs again.
    fn flush(&mut self);

    /// Makes accesses to a port exits.
    fn trap_port(&mut self, port: u16);

    /// Makes writes of a model-specific register exits.
    fn trap_msr_write(&mut self, index: u32);

    /// Takes out of a `CPUID` answer what would show the extension in use, which the guest does not
    /// have.
    fn hide_features(&self, leaf: u32, result: &mut CpuidResult);
}
