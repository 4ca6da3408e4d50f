//! The component on a bench: units brought up, machines with guests, and what a scenario looks at.

mod broken;
mod descriptors;
pub(crate) mod direct;
mod emulated;
mod event;
mod expect;
mod fault;
pub(crate) mod firmware;
mod guest;
mod hardware;
mod interrupts;
mod job;
mod kinds;
mod ledger;
#[path = "../../../src/log_events.rs"]
mod log_events;
mod oracle;
mod random;
mod tables;
mod tap;
mod watch;

use std::cell::RefCell;
use std::rc::Rc;

use vtd_nest::arch::address::{AddressWidth, Hpa};
use vtd_nest::arch::id::{DomainId, SourceId};
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::arch::register::{FaultRecord, Register64, RootTableAddress, TranslationTableMode};
use vtd_nest::arch::second_stage::SecondStagePointer;
use vtd_nest::mem::Registers;
use vtd_nest::nest::{FaultOutcome, Policy};
use vtd_nest::unit::{Errata, Erratum, InterruptSlice, Unit, UnitConfig};

use crate::bench::{Ability, DeviceTlbUse, Interposer, Observed, Profile, host_offset};

pub(crate) use broken::{OUTSIDE, Structures};
pub(crate) use descriptors::{Submitted, kind};
pub(crate) use event::Event;
pub(crate) use fault::GuestFault;
pub(crate) use guest::{D0, D1, GUEST_LEN_BYTES, Guest, GuestOptions, Vm};
pub(crate) use ledger::Holdings;
pub(crate) use log_events::LogEvents;
pub(crate) use random::Random;
pub(crate) use tables::{ROOT, changed, pasid_cache};
pub(crate) use tap::{Tap, probe_tapped};

/// An address that scenarios map; its index differs at each level.
pub(crate) const IOVA: u64 = 0x12_3456_7000;

/// A bench, with every unit brought up.
pub(crate) struct Lab {
    pub(crate) hypervisor: Rc<Interposer>,
    pub(crate) units: Vec<Unit<Observed>>,
    /// Hardware's records that no machine has taken yet.
    unclaimed: RefCell<Vec<(u8, FaultRecord)>>,
    /// Records that were the hypervisor's business.
    pub(crate) host_faults: RefCell<Vec<(FaultRecord, FaultOutcome)>>,
    /// Interrupt entries of the hypervisor's own devices.
    slices: RefCell<Vec<(SourceId, InterruptSlice)>>,
}

/// Where a scenario runs: it starts what it needs from here.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) profile: &'a dyn Profile,
}

impl Place<'_> {
    /// Units brought up, no machine.
    pub(crate) fn lab(self) -> Rc<Lab> {
        self.lab_of(1)
    }

    /// Several units brought up, no machine.
    pub(crate) fn lab_of(self, units: usize) -> Rc<Lab> {
        self.lab_with_timeouts(&vec![UnitConfig::new(0, 39).timeout_nanoseconds; units])
    }

    /// A unit for each of these times, in nanoseconds, after which it is given up.
    pub(crate) fn lab_with_timeouts(self, timeouts: &[u64]) -> Rc<Lab> {
        self.lab_with(timeouts, Errata::NONE)
    }

    /// A unit that is known to have an erratum, whether the bench has it or not.
    pub(crate) fn lab_with_erratum(self, erratum: Erratum) -> Rc<Lab> {
        let timeout = UnitConfig::new(0, 39).timeout_nanoseconds;
        self.lab_with(&[timeout], Errata::NONE.with(erratum))
    }

    fn lab_with(self, timeouts: &[u64], errata: Errata) -> Rc<Lab> {
        let bench = self.profile.start(timeouts.len());
        let bench = bench.expect("the bench starts");
        Rc::new(Lab::new(Interposer::new(bench), timeouts, errata))
    }

    /// One machine with both devices, tables and translation on, no PASID entry.
    pub(crate) fn guest(self) -> Guest {
        self.guest_with(GuestOptions::default())
    }

    /// As [`guest`](Self::guest), otherwise.
    pub(crate) fn guest_with(self, options: GuestOptions) -> Guest {
        Guest::start(&self.lab(), options)
    }

    /// A guest whose devices have TLBs of their own, which it is shown.
    pub(crate) fn device_tlb_guest(self) -> Guest {
        self.guest_with(GuestOptions {
            device_tlbs: DeviceTlbUse::Honest,
            ..GuestOptions::default()
        })
    }

    /// A guest that is shown the second stage, whatever the hardware.
    pub(crate) fn shadow_guest(self) -> Guest {
        self.guest_with(GuestOptions {
            policy: Policy {
                forbid_nesting: true,
                ..Policy::default()
            },
            ..GuestOptions::default()
        })
    }
}

impl Lab {
    fn new(hypervisor: Rc<Interposer>, timeouts: &[u64], mut errata: Errata) -> Self {
        let width = hypervisor.bench().host_address_width();
        // What the bench really has, the hypervisor finds in the library's table.
        if !hypervisor.bench().has(Ability::UpdatesObeyReadOnly) {
            errata = errata.with(Erratum::NestedUpdatesIgnoreReadOnly);
        }
        let units = timeouts.iter().enumerate().map(|(index, timeout)| {
            let registers = hypervisor.registers(index).expect("the bench has the unit");
            let config = UnitConfig {
                timeout_nanoseconds: *timeout,
                errata,
                ..UnitConfig::new(0, width)
            };
            let unit = Unit::probe(registers, config).expect("a usable unit");
            unit.bring_up(&*hypervisor).expect("the unit comes up");
            unit
        });
        let units = units.collect();
        Self {
            hypervisor,
            units,
            unclaimed: RefCell::default(),
            host_faults: RefCell::default(),
            slices: RefCell::default(),
        }
    }

    /// Takes what hardware has recorded.
    fn collect_faults(&self) {
        for (index, unit) in self.units.iter().enumerate() {
            while let Some(record) = unit.next_fault() {
                self.unclaimed.borrow_mut().push((index as u8, record));
            }
        }
    }

    /// Gives each record that `claim` takes away.
    fn route_faults(&self, mut claim: impl FnMut(u8, &FaultRecord) -> bool) {
        self.collect_faults();
        let records = self.unclaimed.take();
        let left = records
            .into_iter()
            .filter(|(unit, record)| !claim(*unit, record));
        let left: Vec<_> = left.collect();
        self.unclaimed.borrow_mut().extend(left);
    }

    /// Hardware's records that are no machine's.
    pub(crate) fn take_unclaimed_faults(&self) -> Vec<FaultRecord> {
        self.collect_faults();
        let records = self.unclaimed.take().into_iter();
        records.map(|(_, record)| record).collect()
    }

    /// Nothing that the architecture forbids has been done.
    #[track_caller]
    pub(crate) fn expect_no_violations(&self) {
        let violations = self.hypervisor.bench().violations();
        assert!(violations.is_empty(), "forbidden: {violations:#?}");
    }

    /// The entry for a device and PASID in the physical unit's tables, if it is present.
    pub(crate) fn hardware_entry(&self, source_id: SourceId, pasid: u32) -> Option<PasidEntry> {
        self.hardware_entry_of(0, source_id, pasid)
    }

    /// As [`hardware_entry`](Self::hardware_entry), of another unit.
    pub(crate) fn hardware_entry_of(
        &self,
        unit: usize,
        source_id: SourceId,
        pasid: u32,
    ) -> Option<PasidEntry> {
        let at = self.entry_place(unit, source_id, pasid)?;
        if self.is_legacy(unit) {
            return legacy_entry([0, 8].map(|offset| self.host_read64(host_offset(at, offset))));
        }
        let quadwords =
            std::array::from_fn(|index| self.host_read64(host_offset(at, 8 * index as u64)));
        let entry = PasidEntry::from_quadwords(quadwords);
        entry.is_present().then_some(entry)
    }

    /// Whether a physical unit is driven in legacy mode.
    pub(crate) fn is_legacy(&self, unit: usize) -> bool {
        let registers = self.hypervisor.registers(unit).expect("a unit");
        let root = registers.read64(Register64::ROOT_TABLE_ADDRESS);
        RootTableAddress::from_bits(root).mode() == TranslationTableMode::Legacy
    }

    /// A value read from memory that hardware may use.
    pub(crate) fn host_read64(&self, at: Hpa) -> u64 {
        self.hypervisor.bench().memory().read64(at)
    }
}

/// The PASID entry that says what a present context entry of legacy mode says (§9.3, §9.6).
fn legacy_entry([q0, q1]: [u64; 2]) -> Option<PasidEntry> {
    let width = AddressWidth::from_field(q1 & 7)?;
    let domain_id = DomainId::new((q1 >> 8) as u16);
    let entry = PasidEntry::second_stage(
        SecondStagePointer::new(Hpa::new(q0), width),
        domain_id,
        Default::default(),
    );
    (q0 & 0xd == 1).then_some(entry)
}
