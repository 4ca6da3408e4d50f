//! What a request of a device must come to by the guest's own tables (§3, §7.1.3), worked out from
//! raw bits of guest memory: no code of the library, none of a bench.

use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::SourceId;

use super::{GUEST_LEN_BYTES, Guest};

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A quadword of guest memory, or why it cannot be had.
fn load(guest: &Guest, at: u64, unreadable: FaultReason) -> Result<u64, FaultReason> {
    if at < GUEST_LEN_BYTES {
        Ok(guest.read_u64(at))
    } else {
        Err(unreadable)
    }
}

fn require(condition: bool, reason: FaultReason) -> Result<(), FaultReason> {
    condition.then_some(()).ok_or(reason)
}

impl Guest {
    /// The guest-physical address that a request reaches, or the reason why it is blocked.
    ///
    /// For translation on, tables without large PASID limits or `FPD`, leaf entries whose accessed
    /// and dirty bits are set, and addresses within the input width.
    pub(crate) fn expected(
        &self,
        source_id: SourceId,
        tag: Option<u32>,
        iova: u64,
        write: bool,
    ) -> Result<u64, FaultReason> {
        use FaultReason::*;
        if self.is_legacy() {
            return self.expected_in_legacy_mode(source_id, iova, write);
        }
        let root = self.read_u64(self.root_entry_at(source_id));
        require(root & 1 != 0, ScalableRootEntryNotPresent)?;
        require(root & 0xffe == 0, ScalableRootEntryReserved)?;
        let context = (root & ADDRESS) + self.context_at(source_id) % 0x1000;
        let words = [0, 8, 16, 24].map(|offset| {
            let at = context + offset;
            load(self, at, ScalableContextTableUnreadable)
        });
        let [q0, q1, q2, q3] = [words[0]?, words[1]?, words[2]?, words[3]?];
        require(q0 & 1 != 0, ScalableContextEntryNotPresent)?;
        require(q2 == 0 && q3 == 0, ScalableContextEntryReserved)?;
        require(tag.is_none() || q0 & 8 != 0, PasidDisabled)?;
        let pasid = u64::from(tag.unwrap_or(q1 as u32 & 0xf_ffff));
        let directory = (q0 & ADDRESS) + 8 * (pasid >> 6);
        let directory = load(self, directory, PasidDirectoryUnreadable)?;
        require(directory & 1 != 0, PasidDirectoryEntryNotPresent)?;
        require(directory & 0xffc == 0, PasidDirectoryEntryReserved)?;
        let entry = (directory & ADDRESS) + 64 * (pasid & 63);
        let word = |index: u64| load(self, entry + 8 * index, PasidTableUnreadable);
        let [q0, _, q2, q3] = [word(0)?, word(1)?, word(2)?, word(3)?];
        require(q0 & 1 != 0, PasidEntryNotPresent)?;
        require(q3 == 0, PasidEntryReserved)?;
        let first_stage = self.is_first_stage();
        let address = match q0 >> 6 & 7 {
            1 if first_stage => self.expected_first_stage(q2 & ADDRESS, iova, write)?,
            2 if !first_stage => {
                let levels = (q0 >> 2 & 7) as u32 + 2;
                self.expected_second_stage(q0 & ADDRESS, levels, iova, write)?
            }
            4 => iova,
            _ => return Err(PasidEntryInvalid),
        };
        let denied = if write { WriteDenied } else { ReadDenied };
        require(address < GUEST_LEN_BYTES, denied)?;
        Ok(address)
    }

    fn expected_in_legacy_mode(
        &self,
        source_id: SourceId,
        iova: u64,
        write: bool,
    ) -> Result<u64, FaultReason> {
        use FaultReason::*;
        let root = self.read_u64(self.root_entry_at(source_id));
        require(root & 1 != 0, LegacyRootEntryNotPresent)?;
        require(root & 0xffe == 0, LegacyRootEntryReserved)?;
        let context = (root & ADDRESS) + self.context_at(source_id) % 0x1000;
        let q0 = load(self, context, LegacyContextTableUnreadable)?;
        let q1 = load(self, context + 8, LegacyContextTableUnreadable)?;
        require(q0 & 1 != 0, LegacyContextEntryNotPresent)?;
        require(q0 & 0xff0 == 0, LegacyContextEntryReserved)?;
        let address = match q0 >> 2 & 3 {
            0 => {
                let levels = (q1 & 7) as u32 + 2;
                let walked = self.expected_second_stage(q0 & ADDRESS, levels, iova, write);
                walked.map_err(|reason| self.shown(reason, write))?
            }
            2 => iova,
            _ => return Err(LegacyContextEntryInvalid),
        };
        let denied = if write { WriteDenied } else { ReadDenied };
        require(address < GUEST_LEN_BYTES, self.shown(denied, write))?;
        Ok(address)
    }

    fn expected_first_stage(&self, root: u64, iova: u64, write: bool) -> Result<u64, FaultReason> {
        use FaultReason::*;
        let (mut table, mut writable) = (root, true);
        for level in (1..=4).rev() {
            let shift = 3 + 9 * level;
            let unreadable = if level == 4 {
                FirstStageRootUnreadable
            } else {
                FirstStageUnreadable
            };
            let entry = load(self, table + (iova >> shift & 0x1ff) * 8, unreadable)?;
            require(entry & 1 != 0, FirstStageNotPresent)?;
            let large = level > 1 && entry & 0x80 != 0;
            require(!large || level < 4, FirstStageReserved)?;
            writable &= entry & 2 != 0;
            require(entry & 4 != 0, UserRequestDenied)?;
            if large || level == 1 {
                let below = (1 << shift) - 1;
                require(
                    !large || entry & ADDRESS & below & !0x1000 == 0,
                    FirstStageReserved,
                )?;
                require(!write || writable, WriteDenied)?;
                return Ok(entry & ADDRESS & !below | iova & below);
            }
            table = entry & ADDRESS;
        }
        unreachable!("level 1 ends the walk")
    }

    fn expected_second_stage(
        &self,
        root: u64,
        levels: u32,
        iova: u64,
        write: bool,
    ) -> Result<u64, FaultReason> {
        use FaultReason::*;
        let (mut table, mut rights) = (root, 3);
        for level in (1..=levels).rev() {
            let shift = 3 + 9 * level;
            let unreadable = if level == levels {
                SecondStageRootUnreadable
            } else {
                SecondStageUnreadable
            };
            let entry = load(self, table + (iova >> shift & 0x1ff) * 8, unreadable)?;
            rights &= entry & 3;
            require(rights != 0, SecondStageNotPresent)?;
            let large = level > 1 && entry & 0x80 != 0;
            require(!large || level < 4, SecondStageReserved)?;
            if large || level == 1 {
                let below = (1 << shift) - 1;
                require(
                    entry & ADDRESS & below == 0 || level == 1,
                    SecondStageReserved,
                )?;
                require(!write || rights & 2 != 0, WriteDenied)?;
                require(write || rights & 1 != 0, ReadDenied)?;
                return Ok(entry & ADDRESS & !below | iova & below);
            }
            table = entry & ADDRESS;
        }
        unreachable!("level 1 ends the walk")
    }
}
