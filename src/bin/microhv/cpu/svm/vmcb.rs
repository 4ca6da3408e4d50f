//! The virtual machine control block: offsets and bits, and typed accesses to them.

use crate::memory::Window;

/// Offsets into the control area.
pub(crate) mod control {
    /// Intercepted instructions and events, 64 bits.
    pub(crate) const INTERCEPTS: u64 = 0x0c;
    pub(crate) const PORT_PERMISSIONS: u64 = 0x40;
    pub(crate) const MSR_PERMISSIONS: u64 = 0x48;
    /// Address space identifier, 32 bits.
    pub(crate) const ASID: u64 = 0x58;
    /// What to flush at the next entry, 8 bits.
    pub(crate) const TLB_CONTROL: u64 = 0x5c;
    pub(crate) const INTERRUPT_SHADOW: u64 = 0x68;
    pub(crate) const EXIT_CODE: u64 = 0x70;
    pub(crate) const EXIT_INFORMATION_1: u64 = 0x78;
    pub(crate) const EXIT_INFORMATION_2: u64 = 0x80;
    pub(crate) const NESTED_PAGING: u64 = 0x90;
    pub(crate) const EVENT_INJECTION: u64 = 0xa8;
    pub(crate) const NESTED_CR3: u64 = 0xb0;
}

/// Offsets into the state save area.
pub(crate) mod state {
    pub(crate) const ES: u64 = 0x400;
    pub(crate) const CS: u64 = 0x410;
    pub(crate) const SS: u64 = 0x420;
    pub(crate) const DS: u64 = 0x430;
    pub(crate) const FS: u64 = 0x440;
    pub(crate) const GS: u64 = 0x450;
    pub(crate) const GDTR: u64 = 0x460;
    pub(crate) const LDTR: u64 = 0x470;
    pub(crate) const IDTR: u64 = 0x480;
    pub(crate) const TR: u64 = 0x490;
    pub(crate) const EFER: u64 = 0x4d0;
    pub(crate) const CR4: u64 = 0x548;
    pub(crate) const CR3: u64 = 0x550;
    pub(crate) const CR0: u64 = 0x558;
    pub(crate) const DR7: u64 = 0x560;
    pub(crate) const DR6: u64 = 0x568;
    pub(crate) const RFLAGS: u64 = 0x570;
    pub(crate) const RIP: u64 = 0x578;
    pub(crate) const RSP: u64 = 0x5d8;
    pub(crate) const RAX: u64 = 0x5f8;
    pub(crate) const PAT: u64 = 0x668;
}

/// Bits of the intercepts.
pub(crate) mod intercept {
    pub(crate) const INIT: u64 = 1 << 3;
    pub(crate) const CPUID: u64 = 1 << 18;
    pub(crate) const INVD: u64 = 1 << 22;
    pub(crate) const INVLPGA: u64 = 1 << 26;
    pub(crate) const PORTS: u64 = 1 << 27;
    pub(crate) const MSRS: u64 = 1 << 28;
    pub(crate) const SHUTDOWN: u64 = 1 << 31;
    /// `VMRUN`, `VMMCALL`, `VMLOAD`, `VMSAVE`, `STGI`, `CLGI`, `SKINIT`: the extension's own.
    pub(crate) const EXTENSION: u64 = 0x7f << 32;
}

/// Exit codes.
pub(crate) mod exit_code {
    pub(crate) const INIT: u64 = 0x63;
    pub(crate) const CPUID: u64 = 0x72;
    pub(crate) const INVD: u64 = 0x76;
    pub(crate) const INVLPGA: u64 = 0x7a;
    pub(crate) const PORT: u64 = 0x7b;
    pub(crate) const MSR: u64 = 0x7c;
    pub(crate) const SHUTDOWN: u64 = 0x7f;
    /// From `VMRUN` to `SKINIT`.
    pub(crate) const EXTENSION_FIRST: u64 = 0x80;
    pub(crate) const EXTENSION_LAST: u64 = 0x86;
    pub(crate) const NESTED_PAGE_FAULT: u64 = 0x400;
    /// In the low half; emulators differ about the upper.
    pub(crate) const INVALID: u32 = u32::MAX;
}

/// A segment register's content, in the block's layout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentState {
    pub(crate) selector: u16,
    /// Descriptor bits 55:52 and 47:40, packed.
    pub(crate) attributes: u16,
    pub(crate) limit: u32,
    pub(crate) base: u64,
}

/// One control block: a page of RAM that the processor reads at each entry and writes at each exit.
#[derive(Debug)]
pub(crate) struct Vmcb(Window);

impl Vmcb {
    /// A control block in a zeroed page.
    pub(crate) fn new(page: Window) -> Self {
        Self(page)
    }

    /// Its physical address.
    pub(crate) fn address(&self) -> u64 {
        self.0.start().as_u64()
    }

    // The offsets above lie in the page and are aligned, so no access misses.
    pub(crate) fn read(&self, offset: u64) -> u64 {
        self.0.read_u64(offset).unwrap_or(0)
    }

    pub(crate) fn write(&mut self, offset: u64, value: u64) {
        let _ = self.0.write_u64(offset, value);
    }

    pub(crate) fn set_intercepts(&mut self, value: u64) {
        // 64 bits at a multiple of four.
        let _ = self.0.write_u32(control::INTERCEPTS, value as u32);
        let _ = self
            .0
            .write_u32(control::INTERCEPTS + 4, (value >> 32) as u32);
    }

    pub(crate) fn set_asid(&mut self, asid: u32) {
        let _ = self.0.write_u32(control::ASID, asid);
    }

    pub(crate) fn set_tlb_control(&mut self, value: u8) {
        let _ = self.0.write_u8(control::TLB_CONTROL, value);
    }

    pub(crate) fn set_segment(&mut self, offset: u64, segment: SegmentState) {
        let _ = self.0.write_u16(offset, segment.selector);
        let _ = self.0.write_u16(offset + 2, segment.attributes);
        let _ = self.0.write_u32(offset + 4, segment.limit);
        let _ = self.0.write_u64(offset + 8, segment.base);
    }

    /// Attributes of a segment register.
    pub(crate) fn segment_attributes(&self, offset: u64) -> u16 {
        self.0.read_u16(offset + 2).unwrap_or(0)
    }
}
