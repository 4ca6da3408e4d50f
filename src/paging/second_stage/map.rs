//! Mapping: runs of entries, missing tables, overlaps.

use core::marker::PhantomData;

use super::{
    ENTRIES, ENTRY_BYTES, InputAddress, MAX_LEVELS, MapError, SecondStage, entry_at, slot_address,
    span_of,
};
use crate::arch::address::{Gpa, Hpa, PageSize};
use crate::arch::second_stage::{Rights, SecondStageEntry};
use crate::mem::{FrameChain, Frames, HostMemory};

/// Entries of one size that lie side by side in one table page.
#[derive(Clone, Copy)]
struct Run {
    size: PageSize,
    count: u64,
    /// Highest level whose entry on the path is not present; 0 if the table page exists.
    missing_from: u8,
}

impl Run {
    fn len_bytes(&self) -> u64 {
        self.count.saturating_mul(self.size.len_bytes())
    }
}

impl<I: InputAddress> SecondStage<I> {
    /// Maps `len_bytes` from `input` on to `output`, in the largest pages that fit.
    ///
    /// No invalidation is owed on a unit without caching mode and write-buffer flushing; with
    /// either, the caller invalidates the range (§6.5.3.5).
    ///
    /// # Errors
    ///
    /// [`MapError`]: ranges and overlaps are checked and all table pages reserved before the
    /// first entry is written.
    pub fn map<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        output: Hpa,
        len_bytes: u64,
        rights: Rights,
    ) -> Result<(), MapError> {
        self.untyped()
            .map_untyped(h, Gpa::new(input.to_u64()), output, len_bytes, rights)
    }
}

impl<I> SecondStage<I> {
    /// The same table: the space of its input is a matter of those who use it, and the code below is
    /// there once.
    const fn untyped(&self) -> SecondStage<Gpa> {
        SecondStage {
            root: self.root,
            config: self.config,
            owner: self.owner,
            input: PhantomData,
        }
    }
}

impl SecondStage<Gpa> {
    fn map_untyped<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: Gpa,
        output: Hpa,
        len_bytes: u64,
        rights: Rights,
    ) -> Result<(), MapError> {
        self.check_mapping(input, output, len_bytes, rights)?;
        let wanted = self.count_missing_tables(h, input, output, len_bytes)?;
        let mut reserve = FrameChain::allocate(h, self.owner, wanted)?;

        let mut done = 0;
        while done < len_bytes {
            let address = input.to_u64().saturating_add(done);
            let target = output.as_u64().saturating_add(done);
            let run = self.next_run(h, address, target, len_bytes - done)?;
            let Some(at) = self.descend(h, address, run.size.level(), &mut reserve) else {
                break;
            };
            let first = SecondStageEntry::leaf(Hpa::new(target), run.size, rights, false);
            self.fill(h, at, first, run);
            done = done.saturating_add(run.len_bytes());
        }
        h.fence();
        reserve.free(h);
        Ok(())
    }

    /// Whether ranges and rights can be those of a mapping; what is mapped already is not looked at.
    ///
    /// # Errors
    ///
    /// [`MapError`].
    pub fn check_mapping(
        &self,
        input: Gpa,
        output: Hpa,
        len_bytes: u64,
        rights: Rights,
    ) -> Result<(), MapError> {
        self.check_input(input, len_bytes)?;
        self.check_output(output, len_bytes)?;
        if !rights.read && !rights.write {
            return Err(MapError::NoRights);
        }
        Ok(())
    }

    /// The next entries to write for a mapping: their size and how many lie side by side.
    ///
    /// A leaf is as large as alignment, length and the table allow: where a lower table exists,
    /// even an empty one, it is used, because replacing it by a leaf would owe an invalidation.
    ///
    /// # Errors
    ///
    /// [`MapError::Overlap`] if any of the entries is a leaf already.
    fn next_run<H: HostMemory>(
        &self,
        h: &H,
        address: u64,
        target: u64,
        rest: u64,
    ) -> Result<Run, MapError> {
        let mut page = Some(self.root);
        let mut level = self.config.width.levels();
        let mut missing_from = 0;
        loop {
            let entry = page
                .map(|page| entry_at(h, page, address, level))
                .filter(|entry| entry.is_present());
            if entry.is_some_and(|entry| level == 1 || entry.is_leaf(level)) {
                return Err(MapError::Overlap { address });
            }
            if let Some(entry) = entry {
                page = Some(entry.address());
            } else if let Some(size) = self.leaf_size(level, address, target, rest) {
                let count = self.free_run(h, page, address, rest, size)?;
                return Ok(Run {
                    size,
                    count,
                    missing_from,
                });
            } else if page.take().is_some() {
                missing_from = level;
            }
            // `leaf_size` always allows level 1, so the loop ends there at the latest.
            level = level.saturating_sub(1);
        }
    }

    /// The leaf size of `level`, if such a leaf may map `address` to `target` within `rest` bytes.
    fn leaf_size(&self, level: u8, address: u64, target: u64, rest: u64) -> Option<PageSize> {
        let size = PageSize::of_level(level.max(1))?;
        let supported = match size {
            PageSize::Size4KiB => return Some(size),
            PageSize::Size2MiB => self.config.leaves_2mib,
            PageSize::Size1GiB => self.config.leaves_1gib,
        };
        let fits = (address | target) & (size.len_bytes() - 1) == 0 && rest >= size.len_bytes();
        (supported && fits).then_some(size)
    }

    /// Number of entries of this size from `address` on, in one table page and within `rest`, that
    /// are free; at least one.
    fn free_run<H: HostMemory>(
        &self,
        h: &H,
        page: Option<Hpa>,
        address: u64,
        rest: u64,
        size: PageSize,
    ) -> Result<u64, MapError> {
        let level = size.level();
        let index = (address >> (12 + 9 * (u32::from(level) - 1))) % ENTRIES;
        let most = (rest / size.len_bytes()).min(ENTRIES - index).max(1);
        let Some(page) = page else { return Ok(most) };
        let mut at = slot_address(page, address, level).as_u64();
        for count in 0..most {
            let entry = SecondStageEntry::from_u64(h.read64(Hpa::new(at)));
            if entry.is_present() {
                if level == 1 || entry.is_leaf(level) {
                    return Err(MapError::Overlap {
                        address: address.saturating_add(count * size.len_bytes()),
                    });
                }
                return Ok(count.max(1));
            }
            at = at.saturating_add(ENTRY_BYTES);
        }
        Ok(most)
    }

    /// Writes a run of entries from `at` on, each leading one page further.
    fn fill<H: HostMemory>(&self, h: &H, at: Hpa, first: SecondStageEntry, run: Run) {
        let mut entry = first.as_u64();
        let end = at
            .as_u64()
            .saturating_add(run.count.saturating_mul(ENTRY_BYTES));
        let mut slot = at.as_u64();
        while slot < end {
            h.write64(Hpa::new(slot), entry);
            entry = entry.wrapping_add(run.size.len_bytes());
            slot += ENTRY_BYTES;
        }
        self.flush_span(h, at, end);
    }

    /// The entry's place for `address` at `level`; missing tables come from `reserve`.
    fn descend<H: HostMemory>(
        &self,
        h: &H,
        address: u64,
        level: u8,
        reserve: &mut FrameChain,
    ) -> Option<Hpa> {
        let mut page = self.root;
        let mut current = self.config.width.levels();
        while current > level {
            let at = slot_address(page, address, current);
            let entry = SecondStageEntry::from_u64(h.read64(at));
            if entry.is_present() {
                page = entry.address();
            } else {
                page = reserve.pop(h)?;
                self.publish_page(h, page);
                h.write64(at, SecondStageEntry::table(page).as_u64());
                self.flush_entry(h, at);
            }
            current -= 1;
        }
        Some(slot_address(page, address, level))
    }

    /// Counts the table pages that mapping the range needs, and finds overlaps.
    fn count_missing_tables<H: HostMemory>(
        &self,
        h: &H,
        input: Gpa,
        output: Hpa,
        len_bytes: u64,
    ) -> Result<u32, MapError> {
        let mut missing = 0u32;
        let mut done = 0;
        // End of the input range of the missing table counted last, by the level of its parent.
        let mut counted_to = [0u64; MAX_LEVELS + 1];
        while done < len_bytes {
            let address = input.to_u64().saturating_add(done);
            let target = output.as_u64().saturating_add(done);
            let run = self.next_run(h, address, target, len_bytes - done)?;
            for (level, counted_to) in counted_to.iter_mut().enumerate() {
                // An entry of this level will have to point to a new table.
                let level = level as u8;
                if level > run.size.level() && level <= run.missing_from && address >= *counted_to {
                    missing = missing.saturating_add(1);
                    *counted_to = (address & !(span_of(level) - 1)).saturating_add(span_of(level));
                }
            }
            done = done.saturating_add(run.len_bytes());
        }
        Ok(missing)
    }
}
