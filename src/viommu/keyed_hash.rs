//! The hash of every store whose keys a guest chooses.

use core::fmt;

/// Spreads keys over the chains of a store, by a secret: who does not know it cannot choose keys
/// that meet in one chain.
#[derive(Clone, Copy)]
pub(crate) struct KeyedHash {
    seed: u64,
}

impl KeyedHash {
    /// The hash of a secret, whose few bits are spread over all of them.
    pub(crate) const fn new(secret: u64) -> Self {
        let spread = secret ^ secret >> 31 ^ 0x243f_6a88_85a3_08d3;
        Self {
            seed: spread.wrapping_mul(0xbf58_476d_1ce4_e5b9),
        }
    }

    /// Another hash of the same secret, for another kind of key: 1 to 63.
    pub(crate) const fn another(self, number: u32) -> Self {
        Self {
            seed: self.seed.rotate_left(number),
        }
    }

    /// The chain of a key, of `chains`: a folded multiplication by constants that the seed hides.
    #[inline]
    pub(crate) fn chain_of(self, key: u64, chains: usize) -> usize {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        let seed = self.seed;
        let hash = fold(
            fold(key ^ seed, 0x9e37_79b9_7f4a_7c15 ^ seed.rotate_left(23)),
            seed.rotate_left(41) | 1,
        );
        // Scales 32 bits of the hash to 0..chains.
        (((hash >> 32) as u128 * chains as u128) >> 32) as usize
    }
}

impl fmt::Debug for KeyedHash {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyedHash")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    // S93: consecutive and strided keys are what a guest can choose.
    #[test]
    fn chains_stay_short_for_regular_keys_whatever_the_secret() {
        for secret in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            for shift in [0, 6, 12, 16, 32] {
                let mut lengths = [0u32; 256];
                let hash = KeyedHash::new(secret);
                for key in 0..256 {
                    lengths[hash.chain_of(key << shift, 256)] += 1;
                }
                assert!(lengths.iter().max() < Some(&12), "{secret:x} {shift}");
            }
        }
    }

    #[test]
    fn two_secrets_and_two_kinds_of_keys_spread_differently_and_the_secret_is_not_shown() {
        let hash = KeyedHash::new(7);
        for other in [KeyedHash::new(8), hash.another(11)] {
            let same = (0..256).filter(|&key| hash.chain_of(key, 256) == other.chain_of(key, 256));
            assert!(same.count() < 16);
        }
        assert_eq!(std::format!("{hash:?}"), "KeyedHash");
    }
}
