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
    /// Invalidation queue errors (`IQE`).
    pub queue_errors: u64,
    /// Faults recorded.
    pub faults_recorded: u64,
    /// Faults not recorded because an entry disables fault processing (`FPD`).
    pub faults_disabled: u64,
    /// Faults not recorded because the same source-id has one pending.
    pub faults_compressed: u64,
    /// Faults not recorded for lack of a free record.
    pub faults_overflowed: u64,
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
        descriptors: 0,
        invalidations: 0,
        invalidation_failures: 0,
        waits: 0,
        wait_write_failures: 0,
        queue_errors: 0,
        faults_recorded: 0,
        faults_disabled: 0,
        faults_compressed: 0,
        faults_overflowed: 0,
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
