//! Counters of a virtual machine's host side.

/// What happened on the host side of a machine since it was created. Counters wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MachineStatistics {
    /// Entries published, the first time or after a withdrawal.
    pub binds: u64,
    /// Entries withdrawn.
    pub unbinds: u64,
    /// Entries changed in place by one 8-byte store.
    pub replaced_in_place: u64,
    /// Binds refused, for whatever reason.
    pub bind_errors: u64,
    /// Descriptors handed to physical units for guest invalidations.
    pub forwarded_descriptors: u64,
    /// Batches submitted for guest invalidations.
    pub forwarded_batches: u64,
    /// Ranges of guest invalidations that were joined with ones before them.
    pub ranges_merged: u64,
    /// Domains invalidated whole because there was no room for one more range.
    pub domains_widened: u64,
    /// Times that a call which waits for hardware paused the processor.
    pub pauses: u64,
    /// Shadow pages written, changed or removed.
    pub shadow_pages: u64,
    /// Guest table pages read to keep shadows in step.
    pub shadow_table_reads: u64,
    /// Shadows emptied because they could not be kept in step.
    pub shadows_dropped: u64,
    /// Hardware faults explained to the guest.
    pub faults_to_guest: u64,
    /// Hardware faults that are the hypervisor's business.
    pub faults_to_host: u64,
    /// Hardware faults that the tables no longer explain: a race with a change.
    pub faults_raced: u64,
    /// Read-only ranges left out of the second stage because of an erratum.
    pub read_only_left_out: u64,
    /// Hardware faults that were only counted: their device had too many in a while.
    pub faults_ignored: u64,
    /// Times that hardware was told to record no more faults of a device for a while.
    pub storms: u64,
    /// Devices put into quarantine.
    pub quarantines: u64,
}

impl MachineStatistics {
    /// Nothing has happened yet.
    pub const NONE: Self = Self {
        binds: 0,
        unbinds: 0,
        replaced_in_place: 0,
        bind_errors: 0,
        forwarded_descriptors: 0,
        forwarded_batches: 0,
        ranges_merged: 0,
        domains_widened: 0,
        pauses: 0,
        shadow_pages: 0,
        shadow_table_reads: 0,
        shadows_dropped: 0,
        faults_to_guest: 0,
        faults_to_host: 0,
        faults_raced: 0,
        read_only_left_out: 0,
        faults_ignored: 0,
        storms: 0,
        quarantines: 0,
    };
}
