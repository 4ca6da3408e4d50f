use super::super::testing::*;
use super::*;
use crate::arch::id::DomainId;

const IQE: u64 = 0x10;

fn is_stopped(t: &Bench) -> Option<u64> {
    (t.unit.read(FSTS, 4) & IQE != 0).then(|| t.unit.read(IQERCD, 8) & 0xf)
}

#[test]
fn a_bad_descriptor_stops_the_queue_at_the_head() {
    // S51, S52, R7, §6.5.2, IQEI of §11.4.9.9: 3 is a bad type, 4 a reserved bit.
    for (name, words, code) in [
        ("type 0", [0, 0, 0, 0], 3),
        ("type 11", [0xb, 0, 0, 0], 3),
        ("type with high bits", [0x207, 0, 0, 0], 3),
        ("device-TLB without DT", [0x3, 0, 0, 0], 3),
        ("PASID device-TLB without DT", [0x8, 0, 0, 0], 3),
        ("IEC without IR", [0x4, 0, 0, 0], 3),
        ("page response without PRS", [0x9, 0, 0, 0], 3),
        ("PC granularity 2", [0x27, 0, 0, 0], 4),
        ("PC reserved", [0x37 | 1 << 6, 0, 0, 0], 4),
        ("PC reserved in the second quadword", [0x37, 1, 0, 0], 4),
        ("PC reserved in the third quadword", [0x37, 0, 1, 0], 4),
        ("PC reserved in the last quadword", [0x37, 0, 0, 1], 4),
        ("PASID IOTLB reserved", [0x26 | 1 << 52, 0, 0, 0], 4),
        ("PASID IOTLB granularity 0", [0x06, 0, 0, 0], 4),
        ("context reserved", [0x11 | 1 << 50, 0, 0, 0], 4),
        ("context granularity 0", [0x01, 0, 0, 0], 4),
        ("IOTLB granularity 0", [0x02, 0, 0, 0], 4),
        ("IOTLB mask beyond MAMV", [0x32, 19, 0, 0], 4),
        ("wait reserved", [0x25 | 1 << 8, STATUS, 0, 0], 4),
        ("wait PD without PDS", [0xa5, STATUS, 0, 0], 4),
        ("wait status not aligned", [0x25, STATUS | 2, 0, 0], 4),
    ] {
        let mut t = Bench::scalable();
        t.unmask_events();
        let good = wait(STATUS, 1, false);
        t.enqueue(&[good, words, wait(STATUS, 2, false)]);
        t.run();
        assert_eq!(is_stopped(&t), Some(code), "{name}");
        assert_eq!(t.unit.read(IQH, 8), 32, "{name}: at the bad one");
        assert_eq!(
            t.host.memory.load(STATUS),
            1,
            "{name}: the good one is done"
        );
        assert_eq!(t.host.interrupts, [FAULT_MESSAGE], "{name}");
        assert_eq!(t.unit.statistics().queue_errors, 1, "{name}");
    }
}

#[test]
fn short_queues_have_short_descriptors_only() {
    // S52: 128-bit queue in legacy mode; types 6 to A have no such form.
    for (first, code) in [
        ([0x37, 0], Some(3)),
        ([0x26, 0], Some(3)),
        ([0x11, 0], None),
    ] {
        let mut t = Bench::new();
        t.unit.write(IQA, 8, QUEUE);
        t.command(QIE);
        t.store(QUEUE, &first);
        t.store(QUEUE + 16, &wait(STATUS, 5, false)[..2]);
        t.unit.write(IQT, 4, 32);
        t.run();
        assert_eq!(is_stopped(&t), code);
        assert_eq!(
            t.host.memory.load(STATUS),
            if code.is_none() { 5 } else { 0 }
        );
    }
}

#[test]
fn width_and_mode_that_do_not_go_together_stop_the_queue() {
    // §11.4.9.9: 5 is a width, 7 a table mode.
    let mut t = Bench::new();
    t.unit.write(IQA, 8, QUEUE);
    t.command(QIE);
    t.set_root(TranslationTableMode::Scalable);
    t.unit.write(IQT, 8, 16);
    t.run();
    assert_eq!(is_stopped(&t), Some(5));
    let mut t = Bench::new();
    t.enable_queue();
    t.set_root(TranslationTableMode::Reserved);
    t.unit.write(IQT, 8, 32);
    t.run();
    assert_eq!(is_stopped(&t), Some(7));
}

#[test]
fn a_bad_tail_or_queue_address_stops_the_queue() {
    // G9, §11.4.9.9: 1 beyond the queue, 6 misaligned, 2 not readable.
    for (tail, address, code) in [
        (4096, QUEUE | 1 << 11, 1),
        (0x7_fff0, QUEUE | 1 << 11, 1),
        (16, QUEUE | 1 << 11, 6),
        (32, (MEMORY_BYTES as u64) | 1 << 11, 2),
        (32, 0xffff_ffff_ffff_f000 | 1 << 11, 2),
    ] {
        let mut t = Bench::new();
        t.unit.write(IQA, 8, address);
        t.command(QIE);
        t.unit.write(IQT, 8, tail);
        t.run();
        assert_eq!(is_stopped(&t), Some(code), "{tail:x} {address:x}");
        assert_eq!(t.unit.read(IQH, 8), 0);
    }
}

#[test]
fn a_stopped_queue_goes_on_at_the_head_once_the_error_is_cleared() {
    // S54: neither a new tail nor a poll restarts it, clearing IQE alone does.
    let mut t = Bench::scalable();
    t.enqueue(&[[0; 4], wait(STATUS, 2, false)]);
    t.run();
    t.enqueue(&[wait(STATUS + 8, 3, false)]);
    t.run();
    assert_eq!((t.unit.read(IQH, 8), t.host.memory.load(STATUS)), (0, 0));
    // As Linux does: the bad one is overwritten.
    t.store(QUEUE, &wait(STATUS + 16, 1, false));
    t.unit.write(FSTS, 4, IQE);
    assert_eq!(t.unit.read(IQERCD, 8), 0);
    t.run();
    assert_eq!(t.unit.read(IQH, 8), 96);
    for (offset, data) in [(16, 1), (0, 2), (8, 3)] {
        assert_eq!(t.host.memory.load(STATUS + offset), data);
    }
}

#[test]
fn a_wait_writes_its_status_then_raises_its_event() {
    // S53, §6.5.2.9, §6.5.2.10.
    let mut t = Bench::scalable();
    t.unmask_events();
    t.enqueue(&[wait(STATUS + 4, 0xdead_beef, true), wait(STATUS, 1, true)]);
    t.run();
    assert_eq!(t.host.memory.load(STATUS), 0xdead_beef_0000_0001);
    assert_eq!(t.unit.read(ICS, 4), 1);
    assert_eq!(
        t.host.interrupts,
        [COMPLETION_MESSAGE],
        "one while IWC is set"
    );
    t.unit.write(ICS, 4, 1);
    t.submit_raw(wait(STATUS, 2, true));
    assert_eq!(t.host.interrupts.len(), 2);
    // IF alone; then masked.
    t.unit.write(ICS, 4, 1);
    t.unit.write(IECTL, 4, 1 << 31);
    t.submit_raw([0x15, 0, 0, 0]);
    assert_eq!(
        (t.unit.read(ICS, 4), t.unit.read(IECTL, 4)),
        (1, 0xc000_0000)
    );
    t.unit.write(ICS, 4, 1);
    assert_eq!(t.unit.read(IECTL, 4), 0x8000_0000);
}

#[test]
fn a_wait_for_nothing_is_a_barrier() {
    // S53: neither SW nor IF, with and without FN.
    let mut t = Bench::scalable();
    for head in [0x05, 0x45] {
        t.submit_raw([head, 0, 0, 0]);
    }
    assert_eq!(
        (is_stopped(&t), t.unit.read(IQH, 8), t.unit.read(ICS, 4)),
        (None, 64, 0)
    );
    assert_eq!(t.host.calls, [Call::Flush, Call::Flush]);
    assert_eq!(t.unit.statistics().waits, 2);
}

#[test]
fn a_wait_status_outside_the_guest_is_counted_and_written_nowhere() {
    // G10: beyond memory, at its end, in a hole, above the guest's address width.
    let mut t = Bench::scalable();
    t.host.memory.holes.borrow_mut().insert(STATUS / 4096);
    for address in [MEMORY_BYTES as u64, STATUS, 0x3fff_ffff_fffc] {
        t.submit_raw(wait(address, 7, false));
    }
    assert_eq!(t.unit.statistics().wait_write_failures, 3);
    assert_eq!(t.host.memory.load(STATUS), 0);
    t.submit_raw(wait(MEMORY_BYTES as u64 - 4, 7, false));
    assert_eq!(t.unit.statistics().wait_write_failures, 3);
    assert_eq!(t.host.memory.load(MEMORY_BYTES as u64 - 8) >> 32, 7);
}

#[test]
fn a_wait_completes_only_after_the_host_has() {
    // R30: status, event and head stay back.
    let mut t = Bench::scalable();
    t.unmask_events();
    t.host.waits = 5;
    t.enqueue(&[wait(STATUS, 1, true)]);
    for _ in 0..5 {
        assert_eq!(t.unit.poll(&mut t.host, 100), super::super::Poll::Wait);
        assert_eq!((t.unit.read(IQH, 8), t.host.memory.load(STATUS)), (0, 0));
        assert_eq!(t.unit.read(ICS, 4), 0);
    }
    t.run();
    assert_eq!((t.unit.read(IQH, 8), t.host.memory.load(STATUS)), (32, 1));
}

#[test]
fn a_wait_completes_when_the_host_gives_devices_up() {
    // S49: each failure names another device; a host that never stops failing is not waited for.
    for failures in [1, 2, 100] {
        let mut t = Bench::scalable();
        let error = super::super::BindError::Quarantined { source_id: sid(1) };
        t.host.fail = (0..failures).map(|number| (number, error)).collect();
        t.submit_raw(wait(STATUS, 1, false));
        assert_eq!(t.host.memory.load(STATUS), 1);
        assert!(t.unit.statistics().invalidation_failures <= 6);
    }
}

#[test]
fn a_tail_set_before_the_queue_is_enabled_is_processed() {
    // S55.
    let mut t = Bench::new();
    t.unit.write(IQA, 8, QUEUE | 1 << 11);
    t.enqueue(&[wait(STATUS, 9, false)]);
    t.run();
    assert_eq!(t.host.memory.load(STATUS), 0);
    t.command(QIE);
    assert_eq!((t.host.memory.load(STATUS), t.unit.read(IQH, 8)), (9, 32));
}

#[test]
fn the_head_wraps_and_is_zero_again_when_the_queue_is_disabled() {
    // §11.4.9.1.
    let mut t = Bench::scalable();
    for n in 0..130 {
        t.submit_raw(wait(STATUS, n, false));
    }
    assert_eq!(t.unit.read(IQH, 8), 2 * 32);
    assert_eq!(t.host.memory.load(STATUS), 129);
    // The address is locked meanwhile.
    t.unit.write(IQA, 8, 0xdead_f000);
    assert_eq!(t.unit.read(IQA, 8), QUEUE | 1 << 11);
    t.unit.write(GCMD, 4, TE);
    t.run();
    assert_eq!((t.unit.read(IQH, 8), t.unit.read(GSTS, 4) & QIE), (0, 0));
}

#[test]
fn disabling_the_queue_lets_the_descriptor_in_progress_end_first() {
    let mut t = Bench::scalable();
    t.host.waits = 2;
    t.enqueue(&[wait(STATUS, 9, false), wait(STATUS, 10, false)]);
    assert_eq!(t.unit.poll(&mut t.host, 100), super::super::Poll::Wait);
    // Off and, before that is done, on again: with the old tail, from the start.
    t.unit.write(GCMD, 4, TE);
    assert_eq!(t.unit.read(GSTS, 4) & QIE, QIE);
    t.unit.write(IQT, 8, 0);
    t.unit.write(GCMD, 4, TE | QIE);
    t.run();
    assert_eq!((t.host.memory.load(STATUS), t.unit.read(IQH, 8)), (9, 0));
    assert_eq!(t.unit.read(GSTS, 4) & QIE, QIE);
}

#[test]
fn invalidations_of_translations_are_handed_on() {
    // R30, S41 to S46: what the descriptor names, nothing more.
    let d = DomainId::new(7);
    let p = pasid(5);
    let pages = |address, order, leaf_only| PageRange {
        address: Iova::new(address),
        order,
        leaf_only,
    };
    for (words, expected) in [
        ([0x12, 0], GuestInvalidation::All),
        ([0x22 | 7 << 16, 0], GuestInvalidation::Domain(d)),
        // S43: low address bits that the mask covers do not count.
        (
            [0x32 | 7 << 16, 0x1234_5000 | 3 | 1 << 6],
            GuestInvalidation::DomainPages {
                domain_id: d,
                pages: pages(0x1234_0000, 3, true),
            },
        ),
        (
            [0x26 | 7 << 16 | 5 << 32, 0],
            GuestInvalidation::Pasid {
                domain_id: d,
                pasid: p,
            },
        ),
        (
            [0x36 | 7 << 16 | 5 << 32, 0x1234_0000 | 3],
            GuestInvalidation::PasidPages {
                domain_id: d,
                pasid: p,
                pages: pages(0x1234_0000, 3, false),
            },
        ),
        // S43: not aligned, so widened until one aligned range covers it: 8 pages from page
        // 0x12345 on reach into the next 8.
        (
            [0x36 | 7 << 16 | 5 << 32, 0x1234_5000 | 3 | 1 << 6],
            GuestInvalidation::PasidPages {
                domain_id: d,
                pasid: p,
                pages: pages(0x1234_0000, 4, true),
            },
        ),
        // S43: any mask, no overflow.
        (
            [0x36 | 7 << 16 | 5 << 32, 0xffff_ffff_ffff_f000 | 1],
            GuestInvalidation::PasidPages {
                domain_id: d,
                pasid: p,
                pages: pages(0, 52, false),
            },
        ),
        (
            [0x36 | 7 << 16 | 5 << 32, 0xffff_ffff_ffff_f000 | 63],
            GuestInvalidation::PasidPages {
                domain_id: d,
                pasid: p,
                pages: pages(0, 52, false),
            },
        ),
    ] {
        let mut t = Bench::scalable();
        t.submit_raw([words[0], words[1], 0, 0]);
        assert_eq!(is_stopped(&t), None);
        assert_eq!(t.host.calls, [Call::Invalidate(expected)]);
    }
}

#[test]
fn covering_ranges_cover_and_are_aligned() {
    // S43: against a plain model.
    for page in [0u64, 1, 7, 8, 0x12345, 0xf_ffff_ffff_fff0] {
        for mask in 0..64u8 {
            let range = covering_range(page << 12, mask, false);
            if range.order >= 52 {
                continue;
            }
            let first = u128::from(range.address.as_u64() >> 12);
            let (page, count) = (u128::from(page), 1u128 << mask);
            assert_eq!(first % (1 << range.order), 0, "{page:x} {mask}");
            assert!(first <= page && page + count <= first + (1 << range.order));
        }
    }
}

#[test]
fn device_tlb_descriptors_are_accepted_where_devices_have_tlbs() {
    // S48: covered by what the host invalidates itself; a foreign source-id does not matter.
    let mut t = Bench::scalable_with(Setup {
        extended: 1 << 2,
        ..Setup::default()
    });
    t.submit_raw([0x3 | 0x9999 << 32, 0x7fff_ffff_ffff_f001, 0, 0]);
    t.submit_raw([0x8 | 0x9999 << 16, 1, 0, 0]);
    assert_eq!(is_stopped(&t), None);
    assert_eq!(t.host.operations(), 0);
}

#[test]
fn a_failed_invalidation_is_counted_and_passed() {
    let mut t = Bench::scalable();
    t.host.fail.insert(0, super::super::BindError::Unit);
    t.submit_raw([0x12, 0, 0, 0]);
    assert_eq!(t.unit.read(IQH, 8), 32);
    assert_eq!(t.unit.statistics().invalidation_failures, 1);
}

#[test]
fn no_descriptor_makes_the_unit_write_elsewhere_or_stand_still() {
    // G9, G10: pseudo-random descriptors, biased to valid types; only the status page changes.
    let mut t = Bench::scalable();
    let mut random = 7u64;
    let mut next = move || {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        random ^ random >> 29
    };
    let guard = t.page();
    t.store(guard, &[0x5a5a]);
    for _ in 0..3000 {
        let mut words = [next(), next(), 0, 0];
        words[0] = words[0] & !0xf | (next() % 11);
        if next() % 2 == 0 {
            words[0] &= 0x000f_ffff_ffff_003f;
            words[1] = if words[0] & 0xf == 5 { STATUS } else { 0 };
        }
        t.unit.write(FSTS, 4, IQE);
        t.submit_raw(words);
        if is_stopped(&t).is_some() {
            // Past it.
            let tail = t.unit.read(IQT, 8);
            t.store(QUEUE + t.unit.read(IQH, 8), &wait(STATUS, 0, false));
            t.unit.write(FSTS, 4, IQE);
            t.run();
            assert_eq!(t.unit.read(IQH, 8), tail);
        }
    }
    assert_eq!(t.host.memory.load(guard), 0x5a5a);
}
