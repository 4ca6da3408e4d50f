//! Nothing a guest writes takes its device's DMA out of its machine.

use vtd_model::{Access, ModelConfig};
use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::nest::{MachineError, PhysicalRange, Policy, ProtectedRanges};
use vtd_nest::paging::Rights;

use crate::bench::{Bench, D0, GUEST_LEN_BYTES, Guest};

/// A small generator of pseudo-random numbers (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Whether a host address is behind guest memory.
fn is_of_machine(host: Hpa) -> bool {
    (0x4000_0000..0x4000_0000 + GUEST_LEN_BYTES).contains(&host.as_u64())
}

// Containment (R21, G9): random tables and random invalidations.
#[test]
fn random_guest_tables_never_lead_out_of_the_machine() {
    let shadow = Policy {
        forbid_nesting: true,
        ..Policy::default()
    };
    for (seed, policy) in (1..9).flat_map(|seed| [(seed, Policy::default()), (seed, shadow)]) {
        let mut random = Random(seed * 0x1234_5679);
        let mut guest = Guest::new(Bench::with_policy(ModelConfig::nesting_server(), policy));
        let mut reached = 0;
        for _ in 0..200 {
            match random.below(6) {
                // Garbage that looks like a table, anywhere in the tables' range.
                0 => {
                    let at = 0x10_0000 + random.below(64) * 0x1000 + random.below(512) * 8;
                    let target = 0x10_0000 + random.below(96) * 0x1000;
                    let flags = random.next() & 0xfff | 7;
                    let far = if random.below(4) == 0 {
                        random.next() & 0x000f_ffff_ffff_f000
                    } else {
                        target
                    };
                    guest.write(at, &(far | flags).to_le_bytes());
                }
                1 => {
                    let root = 0x10_0000 + random.below(64) * 0x1000;
                    let mut entry = guest.entry(root, 1 + random.below(4) as u16).to_bytes();
                    if random.below(4) == 0 {
                        entry[random.below(24) as usize] ^= 1 << random.below(8);
                    }
                    let pasid = random.below(3) as u32;
                    guest.write(Guest::entry_at(D0, pasid), &entry);
                }
                2 => guest.invalidate_pasid(random.below(5) as u16, random.below(3) as u32),
                3 => guest.invalidate_pasid_global(),
                4 => {
                    use vtd_nest::arch::descriptor::IotlbGranularity;
                    guest.invalidate_iotlb(IotlbGranularity::Global);
                }
                _ => guest.set_translation(random.below(4) != 0),
            }
            for _ in 0..8 {
                let address = match random.below(3) {
                    0 => random.below(1 << 30),
                    1 => random.next() & 0xffff_ffff_ffff,
                    _ => random.below(GUEST_LEN_BYTES),
                };
                let pasid = Some(random.below(3) as u32).filter(|pasid| *pasid != 0);
                let access = if random.below(2) == 0 {
                    Access::Read
                } else {
                    Access::Write
                };
                if let Ok(host) = guest.bench.translate(D0, pasid, address, access) {
                    assert!(
                        is_of_machine(host),
                        "seed {seed}: {address:#x} leads to {host}"
                    );
                    reached += 1;
                }
            }
            guest.bench.settle();
        }
        assert!(
            reached > 0,
            "seed {seed}: nothing was reached, so nothing was shown"
        );
        guest.bench.model.unit.assert_no_violations();
    }
}

// S83: protected ranges are refused before anything changes.
#[test]
fn protected_ranges_cannot_be_mapped() {
    let mut bench = Bench::new(ModelConfig::nesting_server());
    let mut protected = ProtectedRanges::new();
    let registers = PhysicalRange::new(Hpa::new(0xfed9_0000), 0x1000);
    protected.add(registers).unwrap();
    let mut vm = crate::bench::Vm::new(
        &bench.model.hypervisor,
        &bench.units,
        vtd_nest::nest::MachineConfig {
            number: 2,
            owner: vtd_nest::mem::Owner::new(2),
            policy: Policy::default(),
            protected,
            hash_seed: 1,
            shadow_table_limit: 16,
        },
    )
    .unwrap();
    let (h, units) = (&bench.model.hypervisor, &bench.units);
    let refused = vm.map_memory(
        h,
        units,
        Gpa::new(0),
        Hpa::new(0xfed8_0000),
        0x2_0000,
        Rights::READ_WRITE,
    );
    assert_eq!(refused, Err(MachineError::Protected { range: registers }));
    vm.map_memory(
        h,
        units,
        Gpa::new(0),
        Hpa::new(0xfed8_0000),
        0x1_0000,
        Rights::READ_WRITE,
    )
    .unwrap();
    bench.settle();
}

// S50, G23: memory that was taken away is out of reach when the call returns, nested or shadowed.
#[test]
fn memory_taken_away_is_out_of_reach_when_the_call_returns() {
    let shadow = Policy {
        forbid_nesting: true,
        ..Policy::default()
    };
    for policy in [Policy::default(), shadow] {
        let mut guest = Guest::new(Bench::with_policy(ModelConfig::nesting_server(), policy));
        let iova = 0x1234_5000;
        let page = GUEST_LEN_BYTES - 0x1000;
        let root = guest.table(&[(iova, page)]);
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, 5, &entry);
        guest.invalidate_pasid(7, 5);
        guest.expect_reaches(D0, Some(5), iova, page);
        let bench = &mut guest.bench;
        bench
            .vm
            .unmap_memory(
                &bench.model.hypervisor,
                &bench.units,
                Gpa::new(page),
                0x1000,
            )
            .unwrap();
        bench
            .translate(D0, Some(5), iova, Access::Read)
            .unwrap_err();
        bench.model.unit.assert_no_violations();
    }
}
