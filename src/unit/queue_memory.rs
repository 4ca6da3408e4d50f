//! The frames of the invalidation queue, a ring and a page of status words, and places in them (§6.5.2).

use super::error::QueueError;
use crate::arch::address::Hpa;
use crate::arch::descriptor::{Descriptor, RawDescriptor, WaitStatus};
use crate::arch::register::DescriptorWidth;
use crate::mem::{FrameRun, HostMemory};

/// What places in the ring are multiples of, whatever the width of descriptors (`IQH`, §11.4.9.1).
pub(super) const PLACE_BYTES: u32 = 16;
/// Status words take a quadword each, of which hardware writes the lower half.
const STATUS_WORD_BYTES: u64 = 8;
/// One page of status words, the last of them for waits that nobody looks at.
pub(super) const STATUS_WORDS: u16 = 511;
const UNWATCHED_WORD: u16 = 511;

/// The frames of the queue.
#[derive(Debug)]
pub(super) struct QueueMemory {
    pub(super) ring: FrameRun,
    pub(super) status: FrameRun,
    /// Of each descriptor.
    pub(super) width: DescriptorWidth,
}

impl QueueMemory {
    /// Length of the ring in bytes: a power of two, at most 512 KiB.
    pub(super) const fn ring_bytes(&self) -> u32 {
        self.ring.len_bytes() as u32
    }

    pub(super) fn descriptor_at(&self, offset: u32) -> Hpa {
        let offset = u64::from(offset & self.ring_bytes().wrapping_sub(1));
        Hpa::new(self.ring.address().as_u64().saturating_add(offset))
    }

    pub(super) fn word_at(&self, word: u16) -> Hpa {
        let offset = u64::from(word) * STATUS_WORD_BYTES;
        Hpa::new(self.status.address().as_u64().saturating_add(offset))
    }

    /// Binary logarithm of a descriptor's length in bytes.
    const fn descriptor_order(&self) -> u32 {
        self.width.len_bytes().trailing_zeros()
    }

    /// Number of descriptors that the ring has room for.
    pub(super) const fn places(&self) -> u32 {
        self.ring_bytes() >> self.descriptor_order()
    }

    /// The offset `count` descriptors behind the one at `offset`.
    pub(super) const fn behind(&self, offset: u32, count: u32) -> u32 {
        offset.wrapping_add(count.wrapping_mul(self.width.len_bytes()))
            & self.ring_bytes().wrapping_sub(1)
    }

    /// Number of descriptors from `head` to `tail`.
    pub(super) const fn distance(&self, head: u32, tail: u32) -> u32 {
        (tail.wrapping_sub(head) & self.ring_bytes().wrapping_sub(1)) >> self.descriptor_order()
    }

    /// The head register's value, if it is the place of a descriptor.
    pub(super) const fn checked_head(&self, value: u64) -> Result<u32, QueueError> {
        if value < self.ring_bytes() as u64 && value.is_multiple_of(self.width.len_bytes() as u64) {
            Ok(value as u32)
        } else {
            Err(QueueError::Head { value })
        }
    }

    pub(super) fn write<H: HostMemory>(&self, h: &H, offset: u32, descriptor: RawDescriptor) {
        let mut at = self.descriptor_at(offset);
        let quadwords = self.width.len_bytes() as usize / 8;
        for quadword in descriptor.words().into_iter().take(quadwords) {
            h.write64(at, quadword);
            at = Hpa::new(at.as_u64().saturating_add(8));
        }
    }

    /// A wait that only orders. It stores to a word that nobody looks at, because a wait that does
    /// nothing at all is an error to some emulators. As a fence it keeps what is before it from
    /// being left out of what a later wait proves (§6.5.2.12).
    pub(super) fn fence(&self, page_request_drain: bool) -> Descriptor {
        Descriptor::Wait {
            status: Some(WaitStatus {
                address: self.word_at(UNWATCHED_WORD).as_u64(),
                data: 0,
            }),
            interrupt: false,
            fence: true,
            page_request_drain,
        }
    }
}
