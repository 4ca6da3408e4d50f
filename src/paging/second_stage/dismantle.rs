//! A table that hardware has forgotten goes back to the pool in slices.

use super::{InputAddress, SecondStage};
use crate::mem::{FrameChain, Frames, HostMemory};

/// Frames that a slice returns.
const FRAMES_PER_SLICE: u32 = 64;

/// How far a table has been taken apart, and the frames on their way back to the pool.
#[derive(Debug)]
pub(crate) struct Dismantling {
    /// Below this address nothing is mapped any more.
    next: u64,
    frames: FrameChain,
}

impl Dismantling {
    /// Nothing has been done yet. The table's frames that were detached before come first.
    pub(crate) const fn new(detached: FrameChain) -> Self {
        Self {
            next: 0,
            frames: detached,
        }
    }
}

impl<I: InputAddress> SecondStage<I> {
    /// Does a slice of taking the table apart: the work of about one table page. `true` once all of
    /// it is back in the pool, root included; the table must not be used again.
    ///
    /// Nothing may point to the table any more, and hardware must have forgotten it.
    pub(crate) fn dismantle<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        state: &mut Dismantling,
    ) -> bool {
        let end = self.input_end();
        if state.frames.is_empty() && state.next < end {
            let unmapped = self.remove_slice(h, &mut state.next);
            state.frames.append(h, unmapped.tables);
            if state.next >= end {
                state.frames.push(h, self.root);
            }
            return false;
        }
        state.frames.free_some(h, FRAMES_PER_SLICE);
        state.frames.is_empty() && state.next >= end
    }
}
