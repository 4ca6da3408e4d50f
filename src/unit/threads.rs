//! Tests with several processors at one unit: threads share it as it is, and take its locks.

extern crate std;

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::vec::Vec;

use super::error::QueueError;
use super::interrupt::{DeviceInterrupt, InterruptRemapping};
use super::queue::Ticket;
use super::testing::{Bench, Completion, EXTENDED, ITE, OWNER, TE, World, up};
use crate::arch::descriptor::{Descriptor, DeviceTlbRange, PasidCacheGranularity};
use crate::arch::id::{DomainId, SourceId};
use crate::arch::interrupt::{Interrupt, InterruptAction};
use crate::arch::register::Register32;
use crate::mem::{Owner, Registers};

const SILENT: SourceId = SourceId::from_u16(0x42);
const THREADS: u16 = if cfg!(miri) { 2 } else { 4 };
const ROUNDS: u16 = if cfg!(miri) { 6 } else { 300 };
/// A test that waits so long for a thread has found a deadlock.
const FOREVER: Duration = Duration::from_secs(60);

/// A descriptor that tells whose it is: thread, round and place in its batch are a domain-id.
fn mark(thread: u16, round: u16, place: u16) -> Descriptor {
    let id = thread << 13 | (round % 128) << 6 | place;
    Descriptor::PasidCache {
        granularity: PasidCacheGranularity::Domain(DomainId::new(id)),
    }
}

fn id_of(descriptor: &Descriptor) -> Option<u16> {
    match descriptor {
        Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Domain(id),
        } => Some(id.as_u16()),
        _ => None,
    }
}

fn device_tlb(source_id: SourceId) -> Descriptor {
    Descriptor::DeviceTlb {
        source_id,
        range: DeviceTlbRange::ALL,
        physical_function: SourceId::from_u16(0),
        max_pending: 0,
    }
}

/// Submits as soon as there is room; others make it. Anything but a full queue is a failure.
fn submit(bench: &Bench, batch: &[Descriptor]) -> Ticket {
    let mut refused = 0u32;
    loop {
        match bench.unit.submit(&bench.h, batch) {
            Ok(ticket) => return ticket,
            Err(QueueError::Full { .. }) => {
                refused += 1;
                assert!(refused < 1_000_000, "the ring is full for good");
                thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A ring of one page, hardware that answers late, and time enough for everybody.
fn busy() -> Bench {
    let bench = up(|options| {
        options.extended = EXTENDED | 1 << 2;
        options.config.timeout_nanoseconds = 1_000_000_000;
    });
    bench.world().completion = Completion::AfterNanoseconds(30_000);
    bench
}

/// What has run, by thread: the order in which its descriptors did.
fn executed_by(world: &mut World, thread: u16) -> Vec<u16> {
    let executed = world.executed.iter().filter_map(id_of);
    executed.filter(|id| id >> 13 == thread).collect()
}

#[test]
fn threads_share_a_small_ring_and_every_ticket_completes() {
    let bench = busy();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let bench = &bench;
            scope.spawn(move || {
                let mut tickets = Vec::new();
                for round in 0..ROUNDS {
                    // Up to a third of the ring at once.
                    let length = (round * 7 + thread * 5) % 40;
                    let batch: Vec<_> = (0..length).map(|n| mark(thread, round, n)).collect();
                    tickets.push(submit(bench, &batch));
                    if tickets.len() > 2 {
                        let ticket = tickets.remove(0);
                        assert_eq!(bench.unit.wait(&bench.h, ticket), Ok(()));
                    }
                }
                for ticket in tickets {
                    assert_eq!(bench.unit.wait(&bench.h, ticket), Ok(()));
                }
            });
        }
    });
    let mut world = bench.world();
    // Each batch ran whole, once and in its own order.
    for thread in 0..THREADS {
        let ids = executed_by(&mut world, thread);
        let expected: Vec<u16> = (0..ROUNDS)
            .flat_map(|round| {
                let length = (round * 7 + thread * 5) % 40;
                (0..length).filter_map(move |n| id_of(&mark(thread, round, n)))
            })
            .collect();
        assert_eq!(ids, expected, "thread {thread}");
    }
    // No value was stored to a word twice, and none was left out.
    let statuses: Vec<_> = world
        .executed
        .iter()
        .filter_map(|descriptor| match descriptor {
            Descriptor::Wait {
                status: Some(status),
                ..
            } => Some((status.address, status.data)),
            _ => None,
        })
        .collect();
    let distinct: BTreeSet<_> = statuses.iter().collect();
    assert_eq!(distinct.len(), statuses.len());
    assert_eq!(statuses.len(), usize::from(THREADS * ROUNDS));
}

// S49: with one thread's device silent, only submissions that hold a descriptor for it fail.
#[test]
fn a_silent_device_of_one_thread_costs_the_others_time_only() {
    let bench = busy();
    bench.world().silent = Some((SILENT, 3));
    let failed: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let bench = &bench;
                scope.spawn(move || {
                    let mut failed = 0;
                    for round in 0..ROUNDS / 3 {
                        let is_silent = thread == 0 && round % 3 == 0;
                        let device = if is_silent {
                            SILENT
                        } else {
                            SourceId::from_u16(0x100 + thread)
                        };
                        let batch = [mark(thread, round, 0), device_tlb(device)];
                        let ticket = submit(bench, &batch);
                        let result = bench.unit.wait(&bench.h, ticket);
                        let expected = if is_silent {
                            failed += 1;
                            let source_id = Some(SILENT);
                            Err(QueueError::DeviceTimedOut { source_id })
                        } else {
                            Ok(())
                        };
                        assert_eq!(result, expected, "{thread} {round}");
                    }
                    failed
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(bench.world().errors & ITE, 0);
    let timeouts = bench.unit.statistics().device_timeouts;
    assert!((1..=failed).contains(&timeouts), "{timeouts} {failed}");
    let mut world = bench.world();
    for thread in 1..THREADS {
        let mut ids = executed_by(&mut world, thread);
        // What was aborted ran again.
        ids.dedup();
        let all: BTreeSet<_> = ids.iter().collect();
        assert_eq!(all.len(), usize::from(ROUNDS / 3).min(128), "{thread}");
    }
}

/// Runs `others` on a second thread while the first is in the middle of a wait for hardware.
fn during_a_wait<T: Send>(
    bench: &Bench,
    waits: impl FnOnce() -> T + Send,
    others: impl FnOnce() + Send,
) -> T {
    let (waiting, is_waiting) = mpsc::channel();
    let (done, is_done) = mpsc::channel();
    bench.world().on_pause = Some(std::boxed::Box::new(move || {
        waiting.send(()).unwrap();
        is_done.recv_timeout(FOREVER).expect("others are held up");
    }));
    thread::scope(|scope| {
        let first = scope.spawn(waits);
        is_waiting.recv_timeout(FOREVER).expect("no wait");
        let second = scope.spawn(move || {
            others();
            done.send(()).unwrap();
        });
        second.join().unwrap();
        first.join().unwrap()
    })
}

// G21: whoever waits holds no lock.
#[test]
fn a_thread_that_waits_for_silent_hardware_stops_no_other() {
    let bench = up(|options| options.config.queue_order = 1);
    bench.world().completion = Completion::Never;
    let result = during_a_wait(
        &bench,
        || bench.unit.invalidate_everything(&bench.h),
        || {
            bench.world().completion = Completion::Now;
            let (unit, h) = (&bench.unit, &bench.h);
            assert_eq!(unit.invalidate_everything(h), Ok(()));
            let tables = unit.attach_device(h, OWNER, SILENT, 0).unwrap();
            let detached = unit.detach_device(h, tables).unwrap();
            unit.release(h, detached).unwrap();
            let id = unit.allocate_domain_id().unwrap();
            unit.free_domain_id(id);
            assert!(unit.next_fault().is_none());
            assert!(unit.is_protecting());
        },
    );
    // A wait that comes to nothing ends by its own time.
    assert!(
        matches!(result, Err(QueueError::TimedOut { .. })),
        "{result:?}"
    );
}

#[test]
fn a_thread_that_waits_for_a_stuck_command_stops_no_other() {
    let bench = up(|_| {});
    bench.world().options.stuck_commands = TE;
    let result = during_a_wait(
        &bench,
        || bench.unit.shut_down(&bench.h, super::Leave::Passing),
        || {
            assert!(bench.unit.next_fault().is_none());
            assert!(
                bench
                    .unit
                    .attach_device(&bench.h, OWNER, SILENT, 0)
                    .is_err()
            );
            let error = bench.unit.submit(&bench.h, &[]).unwrap_err();
            assert_eq!(error, QueueError::NotRunning);
        },
    );
    assert!(result.is_err());
}

// Tables, interrupt entries, domain-ids, faults and the queue at once: each thread finds what it
// left, and at the end nothing is in use.
#[test]
fn threads_in_all_parts_of_a_unit_leave_nothing_behind() {
    let bench = up(|options| {
        options.extended |= 1 << 3;
        options.config.interrupts.remapping = InterruptRemapping::Required;
        options.config.timeout_nanoseconds = 1_000_000_000;
    });
    bench.world().completion = Completion::AfterNanoseconds(5_000);
    let domain_ids = bench.unit.free_domain_ids();
    let rounds = if cfg!(miri) { 2 } else { 40 };
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let bench = &bench;
            scope.spawn(move || {
                let (unit, h) = (&bench.unit, &bench.h);
                for round in 0..rounds {
                    // All on one bus: they race for its context table.
                    let source_id = SourceId::from_u16(0x300 | ((round % 8) << 4) | thread);
                    let owner = OWNER;
                    let tables = unit.attach_device(h, owner, source_id, 0).unwrap();
                    let id = unit.allocate_domain_id().unwrap();
                    let mut slice = unit.allocate_interrupt_entries(owner, 16).unwrap();
                    let vector = 0x20 + thread as u8;
                    let interrupt = DeviceInterrupt {
                        source_id,
                        action: InterruptAction::Remap(Interrupt::fixed(1, vector)),
                    };
                    _ = unit
                        .set_interrupt_entry(h, &mut slice, 3, &interrupt)
                        .unwrap();
                    bench.world().record_fault(source_id.as_u16());
                    // Whoever takes it.
                    _ = unit.next_fault();
                    let detached = unit.detach_device(h, tables).unwrap();
                    unit.release(h, detached).unwrap();
                    unit.release_interrupt_entries(h, slice).unwrap();
                    unit.free_domain_id(id);
                }
            });
        }
    });
    while bench.unit.next_fault().is_some() {}
    assert_eq!(bench.world().pending_records(), 0);
    assert_eq!(bench.unit.free_domain_ids(), domain_ids);
    assert_eq!(bench.h.pool.charged_frames(OWNER), 0);
    let statistics = bench.unit.statistics();
    let expected = u64::from(THREADS * rounds);
    assert_eq!(
        (statistics.attached, statistics.released),
        (expected, expected)
    );
    // One context table for the bus, whoever was first.
    let before = bench.h.pool.charged_frames(Owner::HYPERVISOR);
    let tables = bench
        .unit
        .attach_device(&bench.h, OWNER, SourceId::from_u16(0x300), 0);
    assert_eq!(bench.h.pool.charged_frames(Owner::HYPERVISOR), before);
    drop(tables);
    let status = Register32::FAULT_STATUS;
    assert_eq!(bench.unit.registers.lock().read32(status) & 0xff, 0);
}
