//! The way into the guest and back.
//!
//! A leaf with `unsafe`: it enters the guest in assembly, and turns the extension on.

use core::arch::{asm, global_asm};

use x86_64::registers::model_specific::Msr;

use crate::cpu::Registers;
use crate::memory::Window;

use super::vmcb::Vmcb;

const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVM_DISABLED: u64 = 1 << 4;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const PAT: u32 = 0x277;

// RDI: the guest's control block. RSI: a page for the host's own hidden state. RDX: the guest's
// general registers by number. RAX and RSP of the guest are in its control block. The global
// interrupt flag is clear whenever the hypervisor runs, so what arrives waits for the guest.
global_asm!(
    ".section .text.microhv_world_switch, \"ax\", @progbits",
    "microhv_enter_guest:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rsi",
    "push rdx",
    "clgi",
    "mov rax, rsi",
    "vmsave rax",
    "mov rax, rdi",
    "vmload rax",
    "mov rcx, [rdx + 0x08]",
    "mov rbx, [rdx + 0x18]",
    "mov rbp, [rdx + 0x28]",
    "mov rsi, [rdx + 0x30]",
    "mov rdi, [rdx + 0x38]",
    "mov r8, [rdx + 0x40]",
    "mov r9, [rdx + 0x48]",
    "mov r10, [rdx + 0x50]",
    "mov r11, [rdx + 0x58]",
    "mov r12, [rdx + 0x60]",
    "mov r13, [rdx + 0x68]",
    "mov r14, [rdx + 0x70]",
    "mov r15, [rdx + 0x78]",
    "mov rdx, [rdx + 0x10]",
    "vmrun rax",
    // RAX and RSP are as before.
    "vmsave rax",
    "push rdx",
    "mov rdx, [rsp + 8]",
    "mov [rdx + 0x08], rcx",
    "mov [rdx + 0x18], rbx",
    "mov [rdx + 0x28], rbp",
    "mov [rdx + 0x30], rsi",
    "mov [rdx + 0x38], rdi",
    "mov [rdx + 0x40], r8",
    "mov [rdx + 0x48], r9",
    "mov [rdx + 0x50], r10",
    "mov [rdx + 0x58], r11",
    "mov [rdx + 0x60], r12",
    "mov [rdx + 0x68], r13",
    "mov [rdx + 0x70], r14",
    "mov [rdx + 0x78], r15",
    "pop qword ptr [rdx + 0x10]",
    "pop rdx",
    "pop rax",
    "vmload rax",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn microhv_enter_guest(vmcb: u64, host: u64, registers: *mut u64);
}

/// The extension, turned on, with what entries need; there is one value of it.
#[derive(Debug)]
pub(crate) struct WorldSwitch {
    host: Window,
    /// Where the processor keeps the host's state while the guest runs.
    _save_area: Window,
}

impl WorldSwitch {
    /// Turns the extension on; `None` if firmware locked it. Takes two zeroed pages.
    pub(crate) fn turn_on(host: Window, save_area: Window) -> Option<Self> {
        // SAFETY: the caller found the extension in CPUID, so the three registers exist. The save
        // area is RAM that this value owns from now on.
        unsafe {
            if Msr::new(VM_CR).read() & VM_CR_SVM_DISABLED != 0 {
                return None;
            }
            let efer = Msr::new(EFER).read();
            Msr::new(EFER).write(efer | EFER_SVME);
            Msr::new(VM_HSAVE_PA).write(save_area.start().as_u64());
        }
        Some(Self {
            host,
            _save_area: save_area,
        })
    }

    /// Runs the guest until it stops.
    pub(crate) fn enter(&mut self, vmcb: &mut Vmcb, registers: &mut Registers) {
        // SAFETY: the extension is on. Control block and the page for the host's hidden state are
        // RAM of their values. The guest reaches what its nested tables map, and those leave out
        // everything that belongs to the hypervisor; its ports and model-specific registers with
        // power over the hypervisor are exits. The assembly keeps what the convention says, and the
        // rest of the processor's state (x87, SSE, AVX) is not used by this program.
        unsafe {
            microhv_enter_guest(
                vmcb.address(),
                self.host.start().as_u64(),
                registers.general.as_mut_ptr(),
            );
        }
    }
}

/// The page attribute table of the processor.
pub(crate) fn page_attribute_table() -> u64 {
    // SAFETY: every 64-bit processor has the register.
    unsafe { Msr::new(PAT).read() }
}

/// Writes back and forgets all cached memory.
pub(crate) fn write_back_caches() {
    // SAFETY: the instruction changes no memory that a program could see.
    unsafe { asm!("wbinvd", options(nostack)) }
}
