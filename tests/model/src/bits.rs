//! Bit fields of raw words.

/// Bits `high:low` of a word.
pub(crate) const fn field(word: u64, high: u32, low: u32) -> u64 {
    (word >> low) & (u64::MAX >> (63 - (high - low)))
}

/// Whether bit `index` is set.
pub(crate) const fn bit(word: u64, index: u32) -> bool {
    word >> index & 1 == 1
}

/// All bits from `low` up, below bit 64.
pub(crate) const fn from_bit(low: u32) -> u64 {
    if low >= 64 { 0 } else { u64::MAX << low }
}

/// The address in bits 63:12.
pub(crate) const fn page(word: u64) -> u64 {
    word & !0xfff
}

/// Whether an address lies in the interrupt range, 0xFEE0_0000 to 0xFEEF_FFFF (§3.15).
pub(crate) const fn is_interrupt_address(address: u64) -> bool {
    address >> 20 == 0xfee
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_cut_out_by_both_ends() {
        assert_eq!(field(0xabcd_ef01_2345_6789, 15, 8), 0x67);
        assert_eq!(field(u64::MAX, 63, 0), u64::MAX);
        assert_eq!(from_bit(46), 0xffff_c000_0000_0000);
        assert_eq!(from_bit(64), 0);
        assert!(is_interrupt_address(0xfeef_ffff) && !is_interrupt_address(0xfef0_0000));
        assert!(!is_interrupt_address(0x1_fee0_0000));
    }
}
