//! What a guest is told of its device's blocked requests (S28, S59 to S68 on the real path).

use vtd_model::{Access, ModelConfig};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::nest::{FaultOutcome, Policy};

use crate::bench::{Bench, D0, D1, Guest};

const IOVA: u64 = 0x12_3456_7000;

fn guests() -> [Guest; 2] {
    let shadow = Policy {
        forbid_nesting: true,
        ..Policy::default()
    };
    [Policy::default(), shadow]
        .map(|policy| Guest::new(Bench::with_policy(ModelConfig::nesting_server(), policy)))
}

// S59 to S62: each table of the guest, broken in each way.
#[test]
fn broken_guest_tables_are_told_by_their_own_reason() {
    use FaultReason as R;
    type Break = fn(&mut Guest);
    const OUTSIDE: u64 = 0x7fff_f000;
    let set = |guest: &mut Guest, at: u64, value: u64| guest.write(at, &value.to_le_bytes());
    let cases: [(&str, Break, R); 9] = [
        (
            "root entry not present",
            |g| g.write(0x1000, &[0; 16]),
            R::ScalableRootEntryNotPresent,
        ),
        (
            "root entry reserved",
            |g| g.write(0x1000, &[3]),
            R::ScalableRootEntryReserved,
        ),
        (
            "context entry not present",
            |g| {
                let at = g.context_at(D0);
                g.write(at, &[0])
            },
            R::ScalableContextEntryNotPresent,
        ),
        (
            "context entry reserved",
            |g| {
                let at = g.context_at(D0) + 16;
                g.write(at, &[1])
            },
            R::ScalableContextEntryReserved,
        ),
        (
            "directory entry not present",
            |g| {
                let at = Guest::entry_at(D0, 0) - 0x1000;
                g.write(at, &[0])
            },
            R::PasidDirectoryEntryNotPresent,
        ),
        (
            "directory entry reserved",
            |g| {
                let at = Guest::entry_at(D0, 0) - 0x1000;
                g.write(at, &[5])
            },
            R::PasidDirectoryEntryReserved,
        ),
        (
            "entry not present",
            |g| g.write(Guest::entry_at(D0, 5), &[0; 64]),
            R::PasidEntryNotPresent,
        ),
        (
            "entry reserved",
            |g| g.write(Guest::entry_at(D0, 5) + 24, &[1]),
            R::PasidEntryReserved,
        ),
        (
            "entry of a bad type",
            |g| {
                let at = Guest::entry_at(D0, 5);
                let q = g.read_u64(at);
                g.write(at, &(q & !0x1c0).to_le_bytes())
            },
            R::PasidEntryInvalid,
        ),
    ];
    for (name, break_it, reason) in cases {
        for mut guest in guests() {
            let page = guest.page();
            let root = guest.table(&[(IOVA, page)]);
            let entry = guest.entry(root, 7);
            guest.set_entry(D0, 5, &entry);
            guest.invalidate_pasid(7, 5);
            guest.expect_reaches(D0, Some(5), IOVA, page);
            break_it(&mut guest);
            guest.invalidate_context(D0);
            guest.invalidate_pasid_global();
            println!("{name}");
            guest.expect_blocked(D0, Some(5), IOVA, reason);
            guest.bench.model.unit.assert_no_violations();
        }
    }
    let mut guest = Guest::new(Bench::new(ModelConfig::nesting_server()));
    set(&mut guest, 0x1000, OUTSIDE | 1);
    guest.invalidate_context(D0);
    guest.expect_blocked(D0, Some(5), IOVA, R::ScalableContextTableUnreadable);
}

// S28
#[test]
fn table_outside_the_machine_is_told_as_unreadable() {
    for mut guest in guests() {
        let first_stage = guest.is_first_stage();
        let entry = guest.entry(0x7fff_f000, 7);
        guest.set_entry(D0, 5, &entry);
        guest.invalidate_pasid(7, 5);
        let reason = if first_stage {
            FaultReason::FirstStageRootUnreadable
        } else {
            FaultReason::SecondStageRootUnreadable
        };
        guest.expect_blocked(D0, Some(5), IOVA, reason);
        // At or above the address width the pointer is reserved.
        let entry = guest.entry(1 << 50, 7);
        guest.set_entry(D0, 5, &entry);
        guest.invalidate_pasid(7, 5);
        assert_eq!(guest.bench.hardware_entry(D0, 5), None);
        guest.expect_blocked(D0, Some(5), IOVA, FaultReason::PasidEntryReserved);
        guest.bench.model.unit.assert_no_violations();
    }
}

// S70, S29: faults go to the right guest with the right names.
#[test]
fn fault_records_carry_source_id_pasid_and_address() {
    let mut guest = Guest::new(Bench::new(ModelConfig::nesting_server()));
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    let entry = guest.entry(root, 7);
    guest.set_entry(D1, 9, &entry);
    guest.invalidate_pasid(7, 9);
    let reason = guest
        .bench
        .guest_reason(D1, Some(9), IOVA + 0x1000, Access::Write);
    assert_eq!(reason, FaultReason::FirstStageNotPresent);
    let at = u64::from(
        guest
            .bench
            .vm
            .offer()
            .features
            .capability
            .fault_record_offset(),
    );
    let low = guest.bench.vm.read_register(at, 8);
    let high = guest.bench.vm.read_register(at + 8, 8);
    assert_eq!(low, IOVA + 0x1000);
    assert_eq!(high & 0xffff, u64::from(D1.as_u16()));
    assert_eq!(high >> 40 & 0xf_ffff, 9, "PV");
    assert_eq!(high >> 31 & 1, 1, "PP");
    assert_eq!(high >> 63, 1, "F");
}

// R29: with the guest's translation off its faults are the hypervisor's business.
#[test]
fn faults_without_translation_are_the_hypervisors() {
    let mut guest = Guest::new(Bench::new(ModelConfig::nesting_server()));
    guest.set_translation(false);
    guest
        .bench
        .translate(D0, None, 0x7fff_f000, Access::Read)
        .unwrap_err();
    guest.bench.faults.clear();
    guest.bench.settle();
    assert!(matches!(
        guest.bench.faults.as_slice(),
        [(_, FaultOutcome::Host(_))]
    ));
    assert_eq!(
        guest.bench.vm.read_register(0x34, 4) & 2,
        0,
        "nothing is pending in the guest's unit"
    );
}

// S58
#[test]
fn fault_processing_disabled_in_the_guests_entry_silences_its_records() {
    let mut guest = Guest::new(Bench::new(ModelConfig::nesting_server()));
    let root = guest.table(&[]);
    let mut quadwords = *guest.entry(root, 7).quadwords();
    quadwords[0] |= 2;
    guest.set_entry(D0, 5, &PasidEntry::from_quadwords(quadwords));
    guest.invalidate_pasid(7, 5);
    guest.expect_blocked(D0, Some(5), IOVA, FaultReason::FirstStageNotPresent);
    assert_eq!(
        guest.bench.vm.read_register(0x34, 4) & 2,
        0,
        "nothing is recorded"
    );
}

// S63, S64, S65: what a guest's first stage denies, by its own reason, on hardware that nests.
#[test]
fn first_stage_denials_are_told_by_their_own_reason() {
    use FaultReason as R;
    use vtd_nest::arch::address::{Gpa, PageSize};
    use vtd_nest::arch::first_stage::FirstStageEntry;
    let leaf = |page, writable, user| {
        FirstStageEntry::leaf(Gpa::new(page), PageSize::Size4KiB, writable, user)
    };
    for (name, make, address, access, reason) in [
        (
            "not present",
            None,
            IOVA,
            Access::Read,
            R::FirstStageNotPresent,
        ),
        (
            "supervisor page",
            Some((true, false, 0)),
            IOVA,
            Access::Read,
            R::UserRequestDenied,
        ),
        (
            "read-only page",
            Some((false, true, 0)),
            IOVA,
            Access::Write,
            R::WriteDenied,
        ),
        (
            "reserved address bit",
            Some((true, true, 1u64 << 50)),
            IOVA,
            Access::Read,
            R::FirstStageReserved,
        ),
        (
            "non-canonical address",
            Some((true, true, 0)),
            IOVA | 1 << 47,
            Access::Read,
            R::AddressNotCanonical,
        ),
    ] {
        let mut guest = Guest::new(Bench::new(ModelConfig::nesting_server()));
        let page = guest.page();
        let root = guest.table(&[(IOVA, page)]);
        let slot = guest.slot(root, IOVA);
        let bits = make.map_or(0, |(writable, user, more)| {
            leaf(page, writable, user).as_u64() | more
        });
        guest.write(slot, &bits.to_le_bytes());
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, 5, &entry);
        guest.invalidate_pasid(7, 5);
        assert_eq!(
            guest.bench.guest_reason(D0, Some(5), address, access),
            reason,
            "{name}"
        );
        guest.bench.model.unit.assert_no_violations();
    }
}

// S63, S14: a PASID beyond the directory that the context declares.
#[test]
fn pasid_beyond_the_directory_is_not_bound_and_told_as_46() {
    use vtd_nest::arch::context::DirectoryOrder;
    let mut guest = Guest::new(Bench::new(ModelConfig::nesting_server()));
    guest.install_context(
        D0,
        Guest::entry_at(D0, 0) - 0x1000,
        DirectoryOrder::SMALLEST,
    );
    guest.invalidate_context(D0);
    guest.invalidate_pasid(7, 8192);
    assert_eq!(guest.bench.hardware_entry(D0, 8192), None);
    guest.expect_blocked(D0, Some(8192), IOVA, FaultReason::PasidBeyondDirectory);
    guest.bench.model.unit.assert_no_violations();
}
