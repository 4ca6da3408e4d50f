//! Counters of one virtual unit.

/// What a virtual unit has done since it was created; every counter saturates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VirtualUnitStatistics {
    /// Bindings made for a guest entry where none was.
    pub binds: u64,
    /// Bindings changed from one guest entry to another.
    pub replacements: u64,
    /// Bindings taken away.
    pub unbinds: u64,
    /// Requests without PASID bound to the machine's memory, its translation being off.
    pub machine_memory_binds: u64,
    /// Guest entries looked at that were bound as they read.
    pub unchanged: u64,
    /// Bindings that the host refused or had no room for; each is blocked.
    pub bind_failures: u64,
    /// Those of them whose first-stage root is in use with another paging mode or `EAFE`.
    pub root_conflicts: u64,
    /// Bindings that the host could not take away; each is kept until it can.
    pub unbind_failures: u64,
    /// Synchronisations of bindings with the guest's tables, for whatever cause.
    pub synchronisations: u64,
    /// Guest table pages and entries that could not be read or are not valid; each was skipped.
    pub tables_skipped: u64,
    /// Guest descriptors executed.
    pub descriptors: u64,
    /// Guest invalidations handed to the host.
    pub invalidations: u64,
    /// Guest invalidations that the host reported as failed, flushes included.
    pub invalidation_failures: u64,
    /// Wait descriptors completed.
    pub waits: u64,
    /// Status writes of wait descriptors that hit no writable memory.
    pub wait_write_failures: u64,
    /// Device-TLB descriptors dropped because they name no device of the machine.
    pub foreign_device_tlbs: u64,
    /// Invalidation queue errors (`IQE`).
    pub queue_errors: u64,
    /// Guest interrupt entries that say nothing valid, or what no device may raise; each is absent.
    pub interrupt_entries_refused: u64,
    /// Guest interrupt entries that the host could not carry out; each is absent.
    pub interrupt_entry_failures: u64,
    /// Faults recorded.
    pub faults_recorded: u64,
    /// Faults not recorded because an entry disables fault processing (`FPD`).
    pub faults_disabled: u64,
    /// Faults not recorded because the same source-id has one pending.
    pub faults_compressed: u64,
    /// Faults not recorded for lack of a free record.
    pub faults_overflowed: u64,
    /// Requests of emulated devices that an earlier translation answered.
    pub translation_hits: u64,
    /// Requests of emulated devices that the guest's tables were walked for.
    pub translation_walks: u64,
    /// Event messages sent to the guest.
    pub interrupts: u64,
    /// Resets.
    pub resets: u64,
    /// Saved states taken over.
    pub restores: u64,
}

impl VirtualUnitStatistics {
    /// Nothing has happened yet.
    pub const NONE: Self = Self {
        binds: 0,
        replacements: 0,
        unbinds: 0,
        machine_memory_binds: 0,
        unchanged: 0,
        bind_failures: 0,
        root_conflicts: 0,
        unbind_failures: 0,
        synchronisations: 0,
        tables_skipped: 0,
        interrupt_entries_refused: 0,
        interrupt_entry_failures: 0,
        descriptors: 0,
        invalidations: 0,
        invalidation_failures: 0,
        waits: 0,
        wait_write_failures: 0,
        foreign_device_tlbs: 0,
        queue_errors: 0,
        faults_recorded: 0,
        faults_disabled: 0,
        faults_compressed: 0,
        faults_overflowed: 0,
        translation_hits: 0,
        translation_walks: 0,
        interrupts: 0,
        resets: 0,
        restores: 0,
    };
}

/// Adds one to a counter.
#[inline]
pub(super) const fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use super::super::fault::GuestFault;
    use super::super::host::BindError;
    use super::super::testing::*;
    use super::*;
    use crate::arch::address::Iova;
    use crate::arch::context::DirectoryOrder;
    use crate::arch::fault::FaultReason;
    use crate::arch::pasid::PasidEntry;
    use crate::arch::register::RequestType;
    use crate::log_events::LogEvents;

    const D0_NAME: &str = "00:02.0";
    const D1_NAME: &str = "00:13.0";

    fn fault(source_id: u16) -> GuestFault {
        GuestFault {
            source_id: sid(source_id),
            pasid: Some(pasid(5)),
            reason: FaultReason::FirstStageNotPresent,
            address: Iova::new(0x7000),
            request: RequestType::Write,
            privileged: false,
            execute: false,
            fault_processing_disabled: false,
        }
    }

    fn bound() -> Bench {
        let mut t = Bench::scalable();
        t.entry(D0, 5, first_stage(7, 0x30_0000));
        t.invalidate_pasid(7, 5);
        t
    }

    /// What happens, from when on it counts, and what it is counted as.
    struct Kind {
        name: &'static str,
        before: fn() -> Bench,
        happens: fn(&mut Bench),
        counter: fn(&VirtualUnitStatistics) -> u64,
        words: &'static [&'static str],
    }

    const KINDS: [Kind; 14] = [
        Kind {
            name: "bind",
            before: Bench::scalable,
            happens: |t| {
                t.entry(D0, 5, first_stage(7, 0x30_0000));
                t.invalidate_pasid(7, 5);
            },
            counter: |s| s.binds,
            words: &[D0_NAME, "PASID 5: bound", "type 1", "domain-id 7"],
        },
        Kind {
            name: "replace",
            before: bound,
            happens: |t| {
                t.entry(D0, 5, first_stage(8, 0x31_0000));
                t.invalidate_pasid(7, 5);
            },
            counter: |s| s.replacements,
            words: &[D0_NAME, "PASID 5: replaced", "domain-id 8"],
        },
        Kind {
            name: "unbind",
            before: bound,
            happens: |t| {
                t.entry(D0, 5, PasidEntry::default());
                t.invalidate_pasid(7, 5);
            },
            counter: |s| s.unbinds,
            words: &[D0_NAME, "PASID 5: unbound"],
        },
        Kind {
            name: "translation off",
            before: bound,
            happens: Bench::disable_translation,
            counter: |s| s.machine_memory_binds,
            words: &[D0_NAME, "translation off"],
        },
        Kind {
            name: "refused bind",
            before: Bench::scalable,
            happens: |t| {
                t.host.fail.insert(0, BindError::Unit);
                t.entry(D0, 5, first_stage(7, 0x30_0000));
                t.invalidate_pasid(7, 5);
            },
            counter: |s| s.bind_failures,
            words: &[D0_NAME, "PASID 5: blocked", "physical unit"],
        },
        Kind {
            name: "refused unbind",
            before: bound,
            happens: |t| {
                t.host.stuck.insert((0, 5));
                t.entry(D0, 5, PasidEntry::default());
                t.invalidate_pasid(7, 5);
            },
            counter: |s| s.unbind_failures,
            words: &[D0_NAME, "PASID 5: blocked", "quarantined"],
        },
        Kind {
            name: "table that is not valid",
            before: bound,
            happens: |t| {
                t.entry(D0, 6, first_stage(7, 0x30_0000));
                let at = t.entry_at(D0, 6);
                t.store(at, &[t.host.memory.load(at) | 1 << 5]);
                t.invalidate_pasid(7, 6);
            },
            counter: |s| s.tables_skipped,
            words: &[D0_NAME, "PASID 6: not bound"],
        },
        Kind {
            name: "fault",
            before: bound,
            happens: |t| t.record(fault(D1)),
            counter: |s| s.faults_recorded,
            words: &["guest fault 0: write of 0x7000", D1_NAME, "PASID 5", "71:"],
        },
        Kind {
            name: "fault without a free record",
            before: || {
                let mut t = Bench::with(Setup {
                    fault_records: 1,
                    ..Setup::default()
                });
                t.record(fault(D0));
                t
            },
            happens: |t| t.record(fault(D1)),
            counter: |s| s.faults_overflowed,
            words: &["full", "write of 0x7000", D1_NAME, "PASID 5"],
        },
        Kind {
            name: "queue error",
            before: Bench::scalable,
            happens: |t| t.submit_raw([0x37 | 1 << 6, 0x1234, 0, 0]),
            counter: |s| s.queue_errors,
            words: &["queue: stopped at 0x0 of 0x20", "error 4"],
        },
        Kind {
            name: "bad status address",
            before: Bench::scalable,
            happens: |t| t.submit_raw(wait(1 << 40, 1, false)),
            counter: |s| s.wait_write_failures,
            words: &["wait status at 0x10000000000"],
        },
        Kind {
            name: "failed invalidation",
            before: bound,
            happens: |t| {
                t.forget();
                t.host.fail.insert(0, BindError::Unit);
                t.submit_raw([0x26 | 7 << 16 | 5 << 32, 0, 0, 0]);
            },
            counter: |s| s.invalidation_failures,
            words: &["invalidation", "physical unit"],
        },
        Kind {
            name: "emulated device",
            before: || {
                let mut t = Bench::scalable();
                t.context(D1, DirectoryOrder::SMALLEST);
                t
            },
            happens: |t| {
                t.emulate(1, D1);
                let request = super::super::DmaRequest {
                    source_id: sid(D1),
                    pasid: Some(pasid(5)),
                    address: Iova::new(0x7000),
                    access: crate::paging::walk::Access::READ,
                    execute: false,
                };
                t.unit.translate(&mut t.host, &request).unwrap_err();
            },
            counter: |s| s.translation_walks,
            words: &["guest fault 0: read of 0x7000", D1_NAME, "PASID 5", "51:"],
        },
        Kind {
            name: "restore",
            before: Bench::new,
            happens: |t| {
                let state = t.unit.save();
                t.unit.restore(&state).unwrap();
            },
            counter: |s| s.restores,
            words: &["state restored"],
        },
    ];

    #[test]
    fn each_kind_of_event_is_counted_once_and_logged_once() {
        // R24.
        for kind in &KINDS {
            let mut t = (kind.before)();
            let before = (kind.counter)(&t.unit.statistics());
            let events = LogEvents::collect();
            (kind.happens)(&mut t);
            let counted = (kind.counter)(&t.unit.statistics()) - before;
            assert_eq!(counted, 1, "{}", kind.name);
            events.expect(kind.words);
            assert_eq!(events.count(kind.words), 1, "{}", kind.name);
        }
    }

    #[test]
    fn counters_do_not_wrap() {
        let mut counter = u64::MAX - 1;
        count(&mut counter);
        count(&mut counter);
        assert_eq!(counter, u64::MAX);
    }
}
