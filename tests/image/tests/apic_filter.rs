//! What a guest may write to local and I/O APICs.

use crate::apic_filter::{
    INTERRUPT_COMMAND, LOCAL_VECTORS, Refused, Verdict, command_of_message, judge, may_change_base,
    msr_of,
};

#[test]
fn messages_that_take_a_processor_away_are_refused() {
    for (value, expected) in [
        (0x0000_00f0, Verdict::Pass), // fixed
        (0x000c_0400, Verdict::Pass), // NMI to all others
        (0x0000_0200, Verdict::Refuse(Refused::SystemManagement)),
        (0x0000_4500, Verdict::Refuse(Refused::Init)), // asserted
        (0x0000_c500, Verdict::Refuse(Refused::Init)), // asserted, level
        (0x0008_8500, Verdict::Ignore),                // not asserted, level
        (0x0000_0500, Verdict::Refuse(Refused::Init)), // edge: always asserted
        (0x000c_4608, Verdict::Refuse(Refused::StartUp)),
    ] {
        assert_eq!(judge(INTERRUPT_COMMAND, value), expected, "{value:#x}");
    }
    for offset in LOCAL_VECTORS.into_iter().chain([0x500, 0x530]) {
        assert_eq!(judge(offset, 0x8500), Verdict::Refuse(Refused::Init));
        assert_eq!(judge(offset, 0x1_0700), Verdict::Pass);
    }
    // End of interrupt, task priority, the destination, the timer's count.
    for offset in [0x0b0, 0x080, 0x310, 0x380] {
        assert_eq!(judge(offset, 0x500), Verdict::Pass, "{offset:#x}");
    }
    assert_eq!((msr_of(INTERRUPT_COMMAND), msr_of(0x320)), (0x830, 0x832));
}

#[test]
fn the_register_page_stays_where_it_is() {
    const BSP: u64 = 1 << 8;
    const X2APIC: u64 = 1 << 10;
    const ON: u64 = 1 << 11;
    let base = 0xfee0_0000 | BSP;
    for (old, new, has_x2apic, may) in [
        (base | ON, base | ON, false, true),
        (base | ON, base, false, true),
        (base, base | ON, false, true),
        (base | ON, base | ON | X2APIC, true, true),
        (base | ON, base | ON | X2APIC, false, false),
        (base | ON | X2APIC, base, true, true),
        (base | ON | X2APIC, base | ON, true, false),
        (base, base | ON | X2APIC, true, false),
        (base | ON, base | X2APIC, true, false),
        (base | ON, 0xfed9_0000 | BSP | ON, false, false),
        (base | ON, base | ON | 1, false, false),
        (base | ON, 0xfee0_0000 | ON, false, false),
    ] {
        assert_eq!(
            may_change_base(old, new, has_x2apic),
            may,
            "{old:#x} {new:#x}"
        );
    }
}

#[test]
fn only_interrupt_messages_of_fixed_vectors_are_sent() {
    for (address, data, expected) in [
        (0xfee0_1000, 0x0031, Some((1, 0x031))),
        (0xfeef_f00c, 0x4131, Some((0xff, 0x931))), // logical, lowest priority
        (0x0000_0200_fee0_3000, 0x31, Some((0x203, 0x031))),
        (0xfee0_0000, 0x0431, None), // NMI
        (0xfee0_0000, 0x0531, None), // INIT
        (0xfee0_0000, 0x000f, None), // no vector
        (0xfed0_0000, 0x0031, None),
        (0x1000, 0x0031, None),
    ] {
        assert_eq!(
            command_of_message(address, data),
            expected,
            "{address:#x} {data:#x}"
        );
    }
}

#[test]
fn redirections_that_take_a_processor_away_are_refused() {
    use crate::ioapic_filter::{SELECT, Verdict, WINDOW, judge};
    for (offset, selected, value, expected) in [
        (SELECT, 0x00, 0x500, Verdict::Pass),
        (WINDOW, 0x00, 0x500, Verdict::Pass), // the identification
        (WINDOW, 0x10, 0x0031, Verdict::Pass), // fixed
        (WINDOW, 0x10, 0x0700, Verdict::Pass), // external
        (WINDOW, 0x10, 0x0531, Verdict::Refuse), // INIT
        (WINDOW, 0x3e, 0x1_0200, Verdict::Refuse), // system management, masked
        (WINDOW, 0x11, 0x0500_0000, Verdict::Pass), // an upper half
        (0x40, 0x10, 0x531, Verdict::Pass),   // end of interrupt
        (0x14, 0x10, 0x531, Verdict::Ignore),
    ] {
        assert_eq!(
            judge(offset, selected, value),
            expected,
            "{offset:#x} {selected:#x} {value:#x}"
        );
    }
}
