//! The processor behind SVM with nested paging.
//!
//! | module | job |
//! |---|---|
//! | `vmcb` | the control block's layout |
//! | `world_switch` | into the guest and back; the folder's `unsafe` |
//! | `nested` | what the guest reaches of physical memory |
//! | `permissions` | which ports and model-specific registers are exits |
//! | `efer` | the one register that shows SVM, as a guest without it sees it |

mod efer;
mod nested;
mod permissions;
mod vmcb;
mod world_switch;

use core::arch::x86_64::CpuidResult;

use vtd_nest::arch::address::{Gpa, Hpa, PAGE_SIZE_BYTES};

use crate::boot::{cpuid, identity_map_end};
use crate::memory::{Memory, MemoryError, Window};

use super::{
    Access, Cpu, Exception, Exit, MapError, MemoryAccess, Paging, PortAccess, RAX, RCX, RDX, RSI,
    RSP, Registers, Start,
};
use nested::NestedTables;
use permissions::{MSRS_LEN_BYTES, MsrPermissions, PORTS_LEN_BYTES, PortPermissions};
use vmcb::{SegmentState, Vmcb, control, exit_code, intercept, state};
use world_switch::WorldSwitch;

const CPUID_EXTENDED: u32 = 0x8000_0001;
const CPUID_SVM: u32 = 0x8000_000a;
const CPUID_MEMORY_ENCRYPTION: u32 = 0x8000_001f;
/// In ECX of [`CPUID_EXTENDED`]: SVM.
const FEATURE_SVM: u32 = 1 << 2;
/// In ECX of [`CPUID_EXTENDED`]: SKINIT.
const FEATURE_SKINIT: u32 = 1 << 12;
/// In EDX of [`CPUID_SVM`]: nested paging.
const FEATURE_NESTED_PAGING: u32 = 1 << 0;

/// Model-specific registers of the extension itself, which the guest does not have.
const EXTENSION_MSRS: [u32; 3] = [0xc001_0114, 0xc001_0117, 0xc001_0118];

/// Model-specific registers that say what an address leads to, or where firmware's own mode starts:
/// `SYSCFG`, `IORR`, `TOP_MEM`, `TOP_MEM2`, base of configuration space, `SMM_BASE` to `SMM_MASK`.
/// The guest reads them.
const ADDRESS_MAP_MSRS: [u32; 11] = [
    0xc001_0010,
    0xc001_0016,
    0xc001_0017,
    0xc001_0018,
    0xc001_0019,
    0xc001_001a,
    0xc001_001d,
    0xc001_0058,
    0xc001_0111,
    0xc001_0112,
    0xc001_0113,
];

/// In the control block's word at [`control::TLB_CONTROL`]: forget everything.
const FLUSH_ALL: u8 = 1;

/// Why the processor cannot run a guest.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum SvmError {
    /// It does not have SVM.
    NoSvm,
    /// It has SVM without nested paging.
    NoNestedPaging,
    /// Firmware turned SVM off.
    Locked,
    Memory(MemoryError),
    Map(MapError),
}

impl From<MemoryError> for SvmError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl From<MapError> for SvmError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// Pages of RAM that [`Svm::new`] takes.
#[derive(Debug)]
pub(crate) struct Pages {
    vmcb: Window,
    host: Window,
    save_area: Window,
    ports: Window,
    msrs: Window,
    tables: Window,
}

impl Pages {
    /// Takes them out of free RAM.
    pub(crate) fn allocate(memory: &mut Memory) -> Result<Self, MemoryError> {
        let mut zeroed = |len_bytes| {
            memory
                .allocate(len_bytes, PAGE_SIZE_BYTES)
                .map(|region| region.into_zeroed_window())
        };
        Ok(Self {
            vmcb: zeroed(PAGE_SIZE_BYTES)?,
            host: zeroed(PAGE_SIZE_BYTES)?,
            save_area: zeroed(PAGE_SIZE_BYTES)?,
            ports: zeroed(PORTS_LEN_BYTES)?,
            msrs: zeroed(MSRS_LEN_BYTES)?,
            tables: zeroed(nested::TABLE_PAGES * PAGE_SIZE_BYTES)?,
        })
    }
}

/// The processor.
#[derive(Debug)]
pub(crate) struct Svm {
    vmcb: Vmcb,
    world_switch: WorldSwitch,
    tables: NestedTables,
    ports: PortPermissions,
    msrs: MsrPermissions,
    registers: Registers,
}

impl Svm {
    /// Whether the processor can run guests with it.
    pub(crate) fn check() -> Result<(), SvmError> {
        if cpuid(CPUID_EXTENDED, 0).ecx & FEATURE_SVM == 0 {
            return Err(SvmError::NoSvm);
        }
        if cpuid(CPUID_SVM, 0).edx & FEATURE_NESTED_PAGING == 0 {
            return Err(SvmError::NoNestedPaging);
        }
        Ok(())
    }

    /// Turns SVM on and makes a guest that starts at `start` and sees all of the machine but the
    /// range `hidden`, the hypervisor's own.
    pub(crate) fn new(pages: Pages, hidden: (Hpa, Hpa), start: Start) -> Result<Self, SvmError> {
        Self::check()?;
        let has_1gib_pages = cpuid(CPUID_EXTENDED, 0).edx & 1 << 26 != 0;
        let tables = NestedTables::new(pages.tables, identity_map_end(), has_1gib_pages, hidden)?;
        let ports = PortPermissions(pages.ports);
        let mut msrs = MsrPermissions(pages.msrs);
        for index in EXTENSION_MSRS.into_iter().chain([efer::INDEX]) {
            msrs.trap_read(index);
            msrs.trap_write(index);
        }
        for index in ADDRESS_MAP_MSRS {
            msrs.trap_write(index);
        }
        let world_switch =
            WorldSwitch::turn_on(pages.host, pages.save_area).ok_or(SvmError::Locked)?;
        let mut vmcb = Vmcb::new(pages.vmcb);
        vmcb.set_intercepts(
            intercept::INIT
                | intercept::CPUID
                | intercept::INVD
                | intercept::INVLPGA
                | intercept::PORTS
                | intercept::MSRS
                | intercept::SHUTDOWN
                | intercept::EXTENSION,
        );
        vmcb.write(control::PORT_PERMISSIONS, ports.0.start().as_u64());
        vmcb.write(control::MSR_PERMISSIONS, msrs.0.start().as_u64());
        vmcb.set_asid(1);
        vmcb.write(control::NESTED_PAGING, 1);
        vmcb.write(control::NESTED_CR3, tables.root());
        set_start(&mut vmcb, start);
        let mut registers = Registers {
            rip: start.rip,
            rflags: 1 << 1,
            ..Registers::default()
        };
        registers.general[RSP] = start.rsp;
        registers.general[RSI] = start.rsi;
        let mut this = Self {
            vmcb,
            world_switch,
            tables,
            ports,
            msrs,
            registers,
        };
        this.flush();
        Ok(this)
    }

    fn exit(&mut self) -> Exit {
        let code = self.vmcb.read(control::EXIT_CODE);
        let first = self.vmcb.read(control::EXIT_INFORMATION_1);
        let second = self.vmcb.read(control::EXIT_INFORMATION_2);
        match code {
            exit_code::INIT => Exit::Init,
            exit_code::CPUID => Exit::Cpuid,
            exit_code::INVD => {
                // Without writing back, the hypervisor's stores would be lost too.
                world_switch::write_back_caches();
                self.skip(2);
                Exit::Handled
            }
            exit_code::INVLPGA | exit_code::EXTENSION_FIRST..=exit_code::EXTENSION_LAST => {
                self.raise(Exception::InvalidOpcode);
                Exit::Handled
            }
            exit_code::PORT => Exit::Port(PortAccess {
                port: (first >> 16) as u16,
                size: (first >> 4 & 7) as u8,
                is_write: first & 1 == 0,
                is_string: first & 0b1100 != 0,
                len_bytes: second.wrapping_sub(self.registers.rip) as u8,
            }),
            exit_code::MSR => self.msr_exit(first & 1 != 0),
            exit_code::SHUTDOWN => Exit::Shutdown,
            exit_code::NESTED_PAGE_FAULT => Exit::Memory(MemoryAccess {
                address: Gpa::new(second),
                is_write: first & 1 << 1 != 0,
                is_fetch: first & 1 << 4 != 0,
                is_table_walk: first & 1 << 33 != 0,
            }),
            _ if code as u32 == exit_code::INVALID => Exit::InvalidState,
            _ => Exit::Unexpected(code),
        }
    }

    fn msr_exit(&mut self, is_write: bool) -> Exit {
        let general = &mut self.registers.general;
        let index = general[RCX] as u32;
        let value = general[RDX] << 32 | general[RAX] & 0xffff_ffff;
        if EXTENSION_MSRS.contains(&index) || ADDRESS_MAP_MSRS.contains(&index) {
            self.raise(Exception::GeneralProtection);
            return Exit::Handled;
        }
        if index != efer::INDEX {
            return if is_write {
                Exit::WriteMsr(index, value)
            } else {
                Exit::ReadMsr(index)
            };
        }
        let efer = self.vmcb.read(state::EFER);
        if is_write {
            let has_paging = self.vmcb.read(state::CR0) & 1 << 31 != 0;
            match efer::written(efer, value, has_paging) {
                Some(efer) => self.vmcb.write(state::EFER, efer),
                None => {
                    self.raise(Exception::GeneralProtection);
                    return Exit::Handled;
                }
            }
        } else {
            let efer = efer::shown(efer);
            general[RAX] = efer & 0xffff_ffff;
            general[RDX] = efer >> 32;
        }
        self.skip(2);
        Exit::Handled
    }
}

/// 64-bit mode with flat segments.
fn set_start(vmcb: &mut Vmcb, start: Start) {
    let code = SegmentState {
        selector: 0x10,
        attributes: 0xa9b,
        limit: u32::MAX,
        base: 0,
    };
    let data = SegmentState {
        selector: 0x18,
        attributes: 0xc93,
        ..code
    };
    vmcb.set_segment(state::CS, code);
    for segment in [state::ES, state::SS, state::DS, state::FS, state::GS] {
        vmcb.set_segment(segment, data);
    }
    let unused = SegmentState {
        selector: 0,
        attributes: 0,
        limit: 0,
        base: 0,
    };
    let system = |attributes, limit| SegmentState {
        attributes,
        limit,
        ..unused
    };
    vmcb.set_segment(state::LDTR, system(0x82, 0xffff));
    vmcb.set_segment(state::TR, system(0x8b, 0xffff));
    vmcb.set_segment(state::IDTR, unused);
    vmcb.set_segment(
        state::GDTR,
        SegmentState {
            base: start.gdt.0,
            limit: start.gdt.1,
            ..unused
        },
    );
    vmcb.write(state::CR0, 0x8000_0011); // PG, ET, PE
    vmcb.write(state::CR3, start.cr3);
    vmcb.write(state::CR4, 1 << 5); // PAE
    vmcb.write(state::EFER, efer::at_start());
    vmcb.write(state::DR6, 0xffff_0ff0);
    vmcb.write(state::DR7, 0x400);
    vmcb.write(state::PAT, world_switch::page_attribute_table());
}

impl Cpu for Svm {
    fn enter(&mut self) -> Exit {
        self.vmcb.write(state::RAX, self.registers.general[RAX]);
        self.vmcb.write(state::RSP, self.registers.general[RSP]);
        self.vmcb.write(state::RIP, self.registers.rip);
        self.vmcb.write(state::RFLAGS, self.registers.rflags);
        self.world_switch.enter(&mut self.vmcb, &mut self.registers);
        self.vmcb.set_tlb_control(0);
        // Was delivered by this entry.
        self.vmcb.write(control::EVENT_INJECTION, 0);
        self.registers.general[RAX] = self.vmcb.read(state::RAX);
        self.registers.general[RSP] = self.vmcb.read(state::RSP);
        self.registers.rip = self.vmcb.read(state::RIP);
        self.registers.rflags = self.vmcb.read(state::RFLAGS);
        self.exit()
    }

    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn paging(&self) -> Paging {
        let is_long_mode = self.vmcb.read(state::EFER) & efer::LONG_MODE_ACTIVE != 0;
        let is_64_bit = self.vmcb.segment_attributes(state::CS) & 1 << 9 != 0;
        Paging {
            cr3: self.vmcb.read(state::CR3),
            cr4: self.vmcb.read(state::CR4),
            is_64_bit_code: is_long_mode && is_64_bit,
        }
    }

    fn skip(&mut self, len_bytes: u8) {
        let next = self.registers.rip.wrapping_add(len_bytes.into());
        self.registers.rip = next;
        self.vmcb.write(control::INTERRUPT_SHADOW, 0);
    }

    fn raise(&mut self, exception: Exception) {
        const VALID: u64 = 1 << 31;
        const HAS_ERROR_CODE: u64 = 1 << 11;
        const EXCEPTION: u64 = 3 << 8;
        let event = match exception {
            Exception::InvalidOpcode => 6,
            Exception::GeneralProtection => 13 | HAS_ERROR_CODE,
        };
        self.vmcb
            .write(control::EVENT_INJECTION, VALID | EXCEPTION | event);
    }

    fn set_access(&mut self, start: Hpa, end: Hpa, access: Access) -> Result<(), MapError> {
        self.tables.set(start, end, access)
    }

    fn flush(&mut self) {
        self.vmcb.set_tlb_control(FLUSH_ALL);
    }

    fn trap_port(&mut self, port: u16) {
        self.ports.trap(port);
    }

    fn trap_msr_write(&mut self, index: u32) {
        self.msrs.trap_write(index);
    }

    fn hide_features(&self, leaf: u32, result: &mut CpuidResult) {
        match leaf {
            CPUID_EXTENDED => result.ecx &= !(FEATURE_SVM | FEATURE_SKINIT),
            CPUID_SVM | CPUID_MEMORY_ENCRYPTION => {
                *result = CpuidResult {
                    eax: 0,
                    ebx: 0,
                    ecx: 0,
                    edx: 0,
                };
            }
            _ => {}
        }
    }
}
