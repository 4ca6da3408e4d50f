//! What the multi-quadword table entries share: fields, little-endian bytes, reserved-bit masks.

/// The field that the specification writes as `HI:LO`, counted over all quadwords of an entry.
///
/// That the field lies within one quadword of the entry is checked when the caller is compiled.
pub(super) const fn field<const HI: u32, const LO: u32, const N: usize>(
    quadwords: &[u64; N],
) -> u64 {
    const { assert!(LO <= HI && LO / 64 == HI / 64 && (HI as usize / 64) < N) };
    (quadwords[LO as usize / 64] >> (LO % 64)) & bits(HI - LO, 0)
}

/// A mask of bits `hi` to `lo` of a quadword; both are taken modulo 64.
pub(super) const fn bits(hi: u32, lo: u32) -> u64 {
    (u64::MAX >> (63 - hi % 64)) & (u64::MAX << (lo % 64))
}

/// A mask of the bits that a number of `width` bits cannot have set.
pub(super) const fn beyond(width: u8) -> u64 {
    match u64::MAX.checked_shl(width as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

/// `mask` if `condition` holds, otherwise no bit.
pub(super) const fn mask_if(condition: bool, mask: u64) -> u64 {
    if condition { mask } else { 0 }
}

/// The first quadword that has reserved bits set, with those bits.
pub(super) fn first_reserved<const N: usize>(
    quadwords: &[u64; N],
    reserved: &[u64; N],
) -> Option<(u8, u64)> {
    (0..)
        .zip(quadwords.iter().zip(reserved))
        .map(|(index, (value, mask))| (index, value & mask))
        .find(|(_, bits)| *bits != 0)
}

/// Defines the raw form of a table entry of several quadwords.
macro_rules! table_entry {
    ($(#[$doc:meta])* $name:ident, quadwords: $count:tt, bytes: $len:tt) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Default)]
        #[repr(C, align($len))]
        pub struct $name([u64; $count]);
        const _: () = assert!(size_of::<$name>() == $len);

        impl $name {
            /// The size of an entry in bytes, which also is its alignment.
            pub const LEN_BYTES: usize = $len;

            /// The entry with these quadwords, the lowest address first.
            #[inline]
            pub const fn from_quadwords(quadwords: [u64; $count]) -> Self {
                Self(quadwords)
            }

            /// The quadwords of the entry, the lowest address first.
            #[inline]
            pub const fn quadwords(&self) -> &[u64; $count] {
                &self.0
            }

            /// The entry as it lies in memory: little endian.
            pub fn from_bytes(bytes: &[u8; $len]) -> Self {
                let mut quadwords = [0; $count];
                for (quadword, bytes) in quadwords.iter_mut().zip(bytes.as_chunks().0) {
                    *quadword = u64::from_le_bytes(*bytes);
                }
                Self(quadwords)
            }

            /// The bytes of the entry as they lie in memory: little endian.
            pub fn to_bytes(&self) -> [u8; $len] {
                let mut bytes = [0; $len];
                for (bytes, quadword) in bytes.as_chunks_mut().0.iter_mut().zip(self.0) {
                    *bytes = quadword.to_le_bytes();
                }
                bytes
            }

            /// The field that the specification writes as `HI:LO`.
            #[inline]
            const fn field<const HI: u32, const LO: u32>(&self) -> u64 {
                $crate::arch::quadwords::field::<HI, LO, $count>(&self.0)
            }

            /// An entry in which only one bit is set.
            #[cfg(test)]
            #[allow(dead_code)]
            pub(crate) fn with_only(bit: usize) -> Self {
                let mut quadwords = [0; $count];
                quadwords[bit / 64] = 1 << (bit % 64);
                Self(quadwords)
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#018x?})"), self.0)
            }
        }
    };
}
pub(super) use table_entry;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_exactly_the_named_bits() {
        assert_eq!(bits(63, 0), u64::MAX);
        assert_eq!(bits(0, 0), 1);
        assert_eq!(bits(11, 7), 0xf80);
        assert_eq!(beyond(0), u64::MAX);
        assert_eq!(beyond(39), 0xffff_ff80_0000_0000);
        assert_eq!(beyond(63), 1 << 63);
        assert_eq!(beyond(64), 0);
        assert_eq!(beyond(255), 0);
    }

    #[test]
    fn fields_are_counted_over_all_quadwords() {
        let quadwords = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
        assert_eq!(field::<63, 0, 2>(&quadwords), quadwords[0]);
        assert_eq!(field::<79, 64, 2>(&quadwords), 0x3210);
        assert_eq!(field::<127, 124, 2>(&quadwords), 0xf);
        assert_eq!(field::<11, 4, 2>(&quadwords), 0xde);
    }
}
