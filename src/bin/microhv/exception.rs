//! Processor exceptions: each is a fault of the image; it is reported, and ends the run. The gates of
//! [`interrupt`]'s handlers are in the same table.
//!
//! A leaf with `unsafe`: it installs descriptor tables and handles exceptions in assembly.

use core::arch::global_asm;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::{lidt, load_tss};
use x86_64::registers::control::{Cr2, Cr3};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

use crate::{console, exit, interrupt};

/// Vectors 0 to 31 are exceptions.
const VECTORS: usize = 32;
/// Vectors that there are.
const ALL_VECTORS: usize = 256;

// One stub per vector, 16 bytes apart. Each leaves an `ExceptionFrame` on the stack: a dummy error
// code where the processor pushes none, the vector, the registers. The processor aligns the stack
// to 16 bytes before its own pushes, and the frame is a multiple of that.
global_asm!(
    ".section .text.microhv_exceptions, \"ax\", @progbits",
    ".balign 16",
    "microhv_exception_stubs:",
    ".irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    ".balign 16",
    ".if \\vector != 8 && \\vector != 10 && \\vector != 11 && \\vector != 12 && \\vector != 13 && \\vector != 14 && \\vector != 17 && \\vector != 21 && \\vector != 29 && \\vector != 30",
    "push 0",
    ".endif",
    "push \\vector",
    "jmp microhv_exception_common",
    ".endr",
    "microhv_exception_common:",
    "push rax", "push rbx", "push rcx", "push rdx", "push rsi", "push rdi", "push rbp",
    "push r8", "push r9", "push r10", "push r11", "push r12", "push r13", "push r14", "push r15",
    "cld",
    "mov rdi, rsp",
    "call {report}",
    "ud2",
    report = sym report,
);

unsafe extern "C" {
    safe static microhv_exception_stubs: u8;
}

/// What the stubs leave on the stack.
#[repr(C)]
struct ExceptionFrame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}
const _: () = assert!(size_of::<ExceptionFrame>().is_multiple_of(16));

/// Exceptions get a stack of their own, so that an overflow of the other is reported too.
#[repr(C, align(16))]
struct ExceptionStack(MaybeUninit<[u8; 16 * 1024]>);

static mut STACK: ExceptionStack = ExceptionStack(MaybeUninit::uninit());
static TASK_STATE: Once<TaskStateSegment> = Once::new();
static DESCRIPTORS: Once<GlobalDescriptorTable> = Once::new();
static GATES: Once<[[u64; 2]; ALL_VECTORS]> = Once::new();

/// From now on, exceptions are reported. Called once, on the boot processor.
pub(crate) fn initialize() {
    let task_state = TASK_STATE.call_once(|| {
        let mut task_state = TaskStateSegment::new();
        let top = (&raw const STACK).addr() + size_of::<ExceptionStack>();
        task_state.interrupt_stack_table[0] = VirtAddr::new(top as u64);
        task_state
    });
    let mut descriptors = GlobalDescriptorTable::new();
    let code = descriptors.append(Descriptor::kernel_code_segment());
    let data = descriptors.append(Descriptor::kernel_data_segment());
    let task = descriptors.append(Descriptor::tss_segment(task_state));
    DESCRIPTORS.call_once(|| descriptors).load();

    let stubs = (&raw const microhv_exception_stubs).addr() as u64;
    let gates = GATES.call_once(|| {
        core::array::from_fn(|vector| {
            let is_exception = vector < VECTORS;
            let address = if is_exception {
                stubs + 16 * vector as u64
            } else if let Some(handler) = interrupt::handler(vector) {
                handler
            } else {
                return [0; 2];
            };
            // Present 64-bit interrupt gate; exceptions on the first stack of the interrupt stack
            // table.
            let low = address & 0xffff
                | u64::from(code.0) << 16
                | u64::from(is_exception) << 32
                | 0x8e00 << 32
                | (address >> 16 & 0xffff) << 48;
            [low, address >> 32]
        })
    });
    let pointer = DescriptorTablePointer {
        limit: (size_of_val(gates) - 1) as u16,
        base: VirtAddr::from_ptr(gates),
    };
    // SAFETY: the selectors name a flat 64-bit code segment, a flat data segment and an available
    // task state in the table just loaded, which is static as are the task state and the gates. Each
    // gate is absent or leads to a stub for its vector: that of an exception is on a stack that
    // nothing else uses and never returns, that of an interrupt changes a counter and returns.
    unsafe {
        CS::set_reg(code);
        DS::set_reg(data);
        ES::set_reg(data);
        SS::set_reg(data);
        load_tss(task);
        lidt(&pointer);
    }
}

/// Called by the stubs, on the exception stack.
extern "C" fn report(frame: &ExceptionFrame) -> ! {
    const NAMES: [&str; VECTORS] = {
        let mut names = ["reserved"; VECTORS];
        names[0] = "divide error";
        names[1] = "debug";
        names[2] = "non-maskable interrupt";
        names[3] = "breakpoint";
        names[4] = "overflow";
        names[5] = "bound range";
        names[6] = "invalid opcode";
        names[7] = "device not available";
        names[8] = "double fault";
        names[10] = "invalid TSS";
        names[11] = "segment not present";
        names[12] = "stack fault";
        names[13] = "general protection";
        names[14] = "page fault";
        names[16] = "x87 error";
        names[17] = "alignment check";
        names[18] = "machine check";
        names[19] = "SIMD error";
        names[20] = "virtualization";
        names[21] = "control protection";
        names[28] = "hypervisor injection";
        names[29] = "VMM communication";
        names[30] = "security";
        names
    };
    static REPORTING: AtomicBool = AtomicBool::new(false);
    if REPORTING.swap(true, Ordering::Relaxed) {
        exit::failure();
    }
    let name = NAMES.get(frame.vector as usize).unwrap_or(&"unknown");
    console::print_last_words(format_args!(
        "\nexception {} ({name}), error code {:#x}, at {:#x}:{:#x}, rflags {:#x}\n\
         rsp {:x}:{:#018x} cr2 {:#018x} cr3 {:#018x}\n\
         rax {:#018x} rbx {:#018x} rcx {:#018x} rdx {:#018x}\n\
         rsi {:#018x} rdi {:#018x} rbp {:#018x} r8  {:#018x}\n\
         r9  {:#018x} r10 {:#018x} r11 {:#018x} r12 {:#018x}\n\
         r13 {:#018x} r14 {:#018x} r15 {:#018x}\n",
        frame.vector,
        frame.error_code,
        frame.cs,
        frame.rip,
        frame.rflags,
        frame.ss,
        frame.rsp,
        Cr2::read_raw(),
        Cr3::read_raw().0.start_address().as_u64(),
        frame.rax,
        frame.rbx,
        frame.rcx,
        frame.rdx,
        frame.rsi,
        frame.rdi,
        frame.rbp,
        frame.r8,
        frame.r9,
        frame.r10,
        frame.r11,
        frame.r12,
        frame.r13,
        frame.r14,
        frame.r15,
    ));
    exit::failure()
}
