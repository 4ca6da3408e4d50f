//! What a fault or an error says: a few words and the numbers that go with them.
//!
//! Every such type tells its words and numbers, and one function prints them: derived `Debug` would
//! take code for each field of each variant.

use core::fmt;

/// A few words, and at most two numbers, which are printed in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Told {
    words: &'static str,
    numbers: [u64; 2],
    count: usize,
}

impl Told {
    /// Words alone.
    pub(crate) const fn words(words: &'static str) -> Self {
        Self {
            words,
            numbers: [0; 2],
            count: 0,
        }
    }

    /// Words and a number.
    pub(crate) const fn one(words: &'static str, number: u64) -> Self {
        Self {
            words,
            numbers: [number, 0],
            count: 1,
        }
    }

    /// Words and two numbers.
    pub(crate) const fn two(words: &'static str, first: u64, second: u64) -> Self {
        Self {
            words,
            numbers: [first, second],
            count: 2,
        }
    }
}

impl fmt::Display for Told {
    #[inline(never)]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words)?;
        for number in self.numbers.iter().take(self.count) {
            write!(f, " {number:#x}")?;
        }
        Ok(())
    }
}

/// Implements `Display` by a `told` method.
macro_rules! display_as_told {
    ($($name:ty),* $(,)?) => {$(
        impl core::fmt::Display for $name {
            #[inline(never)]
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(&self.told(), f)
            }
        }
    )*};
}
pub(crate) use display_as_told;

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn words_come_first_and_numbers_are_hexadecimal() {
        for (told, expected) in [
            (Told::words("not present"), "not present"),
            (Told::one("address width", 0x1f), "address width 0x1f"),
            (
                Told::two("reserved bits", 3, 0x80),
                "reserved bits 0x3 0x80",
            ),
        ] {
            assert_eq!(told.to_string(), expected);
        }
    }
}
