//! `EFER`, the one register that shows SVM, as a guest without SVM sees it.

/// The register's index.
pub(crate) const INDEX: u32 = 0xc000_0080;

const SYSTEM_CALL: u64 = 1 << 0;
const LONG_MODE_ENABLE: u64 = 1 << 8;
pub(crate) const LONG_MODE_ACTIVE: u64 = 1 << 10;
const NO_EXECUTE: u64 = 1 << 11;
const SVM: u64 = 1 << 12;
const FAST_FXSAVE: u64 = 1 << 14;
/// What the guest may set.
const WRITABLE: u64 = SYSTEM_CALL | LONG_MODE_ENABLE | NO_EXECUTE | FAST_FXSAVE;

/// The value in the control block of a guest that starts in 64-bit mode; a guest cannot run without
/// the bit of SVM.
pub(crate) const fn at_start() -> u64 {
    LONG_MODE_ENABLE | LONG_MODE_ACTIVE | SVM
}

/// What the guest reads.
pub(crate) const fn shown(efer: u64) -> u64 {
    efer & !SVM
}

/// The new value in the control block after the guest wrote `value`; `None` if that is a fault.
pub(crate) const fn written(efer: u64, value: u64, has_paging: bool) -> Option<u64> {
    let is_reserved = value & !(WRITABLE | LONG_MODE_ACTIVE) != 0;
    let changes_mode = has_paging && (value ^ efer) & LONG_MODE_ENABLE != 0;
    if is_reserved || changes_mode {
        return None;
    }
    // The processor keeps track of whether long mode is active, and ignores what is written.
    Some(value & WRITABLE | efer & LONG_MODE_ACTIVE | SVM)
}
