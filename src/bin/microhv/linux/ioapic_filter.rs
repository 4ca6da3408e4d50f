//! What a guest may write to an I/O APIC: everything, but redirections that would take a processor
//! out of the guest.
//!
//! Pure; why, says [`apic_filter`](super::apic_filter).

/// Offset of the register that selects one.
pub(crate) const SELECT: u16 = 0x00;
/// Offset of the window on the selected register.
pub(crate) const WINDOW: u16 = 0x10;
/// Offset of the end-of-interrupt register of newer ones.
const END_OF_INTERRUPT: u16 = 0x40;

/// First of the redirection entries, two registers each.
const REDIRECTIONS: u8 = 0x10;

/// What becomes of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Pass,
    /// There is no register.
    Ignore,
    /// The redirection entry has a delivery mode that a guest may not use.
    Refuse,
}

/// Judges a 32-bit write of `value` at `offset` while `selected` is selected.
pub(crate) fn judge(offset: u16, selected: u8, value: u32) -> Verdict {
    match offset {
        SELECT | END_OF_INTERRUPT => Verdict::Pass,
        WINDOW => {
            let is_low_half = selected >= REDIRECTIONS && selected.is_multiple_of(2);
            // System management and INIT.
            if is_low_half && matches!(value >> 8 & 7, 2 | 5) {
                Verdict::Refuse
            } else {
                Verdict::Pass
            }
        }
        _ => Verdict::Ignore,
    }
}
