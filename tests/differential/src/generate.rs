//! Random programs.

use vtd_model::CacheMode;

use crate::configuration::Unit;
use crate::layout::SLOTS;
use crate::program::{
    Address, Dma, Domain, Flaw, Interface, Kind, Mode, Place, Program, Scope, Step, Target, Upper,
};
use crate::random::Random;

/// Steps of a program after its first ones.
const STEPS: u64 = 40;

/// A program for a unit: the same for the same seed.
pub fn generate(seed: u64, unit: &Unit) -> Program {
    // Other units, other programs.
    let mut random = Random::new(seed ^ unit.signature());
    let mut generator = Generator {
        domains: domains(unit, &mut random),
        unit,
        random,
        mapped: Vec::new(),
    };
    let mut steps = generator.first_steps();
    for _ in 0..STEPS {
        steps.push(generator.step());
    }
    let is_scalable = unit.first_stage() || unit.scalable() && !generator.random.chance(1, 4);
    Program {
        seed,
        mode: if is_scalable {
            Mode::Scalable
        } else {
            Mode::Legacy
        },
        cache_mode: generator.random.pick(&[
            CacheMode::Hoarder,
            CacheMode::Hoarder,
            CacheMode::Tiny,
            CacheMode::None,
        ]),
        domains: generator.domains,
        steps,
    }
}

fn domains(unit: &Unit, random: &mut Random) -> Vec<Domain> {
    let mut kinds = if unit.first_stage() {
        vec![Kind::First, Kind::First, Kind::Second]
    } else {
        vec![Kind::Second, Kind::Second]
    };
    kinds.push(Kind::PassThrough);
    let count = kinds.len() as u16;
    let first = 1 + count * random.below(200) as u16;
    kinds
        .into_iter()
        .zip(first..)
        .map(|(kind, domain_id)| {
            let levels = match kind {
                Kind::Second => {
                    let levels = [3, 4].map(|levels| (levels, unit.allows_levels(levels)));
                    let allowed: Vec<u8> = levels
                        .into_iter()
                        .filter_map(|(levels, allowed)| allowed.then_some(levels))
                        .collect();
                    random.pick(&allowed)
                }
                _ => 4,
            };
            Domain {
                kind,
                levels,
                domain_id,
            }
        })
        .collect()
}

struct Generator<'a> {
    unit: &'a Unit,
    random: Random,
    domains: Vec<Domain>,
    /// Slots that some domain mapped, so that most DMA goes where something is.
    mapped: Vec<u8>,
}

impl Generator<'_> {
    fn first_steps(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.random.chance(1, 2) {
            steps.push(Step::Interface(self.interface()));
        }
        for device in 0..2 {
            let domain = self.random.below(2) as u8;
            steps.push(Step::Attach {
                device,
                domain: Some(domain),
                fault_disable: 0,
                scope: Scope::Exact,
            });
        }
        for _ in 0..self.random.below(6) + 4 {
            let domain = self.random.below(2) as u8;
            steps.push(self.map(domain));
        }
        if self.random.chance(1, 8) {
            steps.push(Step::Dma(self.dma()));
        }
        steps.push(Step::Translation(true));
        steps
    }

    fn step(&mut self) -> Step {
        match self.random.below(100) {
            0..44 => Step::Dma(self.dma()),
            44..58 => {
                let domain = self.domain();
                self.map(domain)
            }
            58..63 => Step::Unmap {
                domain: self.domain(),
                slot: self.slot(),
                scope: self.scope(),
            },
            63..68 => Step::Upper {
                domain: self.domain(),
                slot: self.slot(),
                level: self.random.below(3) as u8 + 2,
                change: match self.random.below(4) {
                    0 => Upper::Absent,
                    1 => Upper::Nowhere,
                    _ => Upper::Rights(self.random.below(8) as u8),
                },
                scope: self.scope(),
            },
            68..73 => Step::Attach {
                device: self.device(),
                domain: (!self.random.chance(1, 8)).then(|| self.any_domain()),
                fault_disable: if self.random.chance(1, 4) {
                    self.random.below(8) as u8
                } else {
                    0
                },
                scope: self.scope(),
            },
            73..78 => {
                let flaw = self.flaw();
                Step::Break {
                    device: self.device(),
                    flaw: (!self.random.chance(1, 3)).then_some(flaw),
                    scope: self.scope(),
                }
            }
            78..80 => Step::NewRoot {
                domain: self.domain(),
                copied: self.random.chance(2, 3),
                scope: self.scope(),
            },
            80..82 => Step::NewDomainId {
                domain: self.any_domain(),
                scope: self.scope(),
            },
            82..83 => Step::Translation(self.random.chance(2, 3)),
            83..84 => Step::RootTable {
                mode: if self.random.chance(1, 3) {
                    Mode::Legacy
                } else {
                    Mode::Scalable
                },
                copied: self.random.chance(1, 2),
            },
            84..85 => Step::Interface(self.interface()),
            85..86 => match self.random.below(2) {
                0 => Step::RootTableNowhere(self.dma()),
                _ => Step::ReservedMode(self.dma()),
            },
            86..88 => Step::Invalidate(self.random.bits() as u8),
            88..89 => Step::Wait(self.random.pick(&[1, 2, 5, 6])),
            89..91 => Step::BadDescriptor(self.descriptor()),
            91..92 => Step::BadTail(self.random.below(0x2000) as u32 & !0xf),
            92..97 => Step::Reserved {
                place: self.reserved_place(),
                word: self.random.below(8) as u8,
                bit: if self.random.chance(1, 3) {
                    self.random.below(12) as u8
                } else {
                    self.random.below(64) as u8
                },
                dma: self.dma(),
            },
            97..98 => Step::ClearPresent(self.dma()),
            98..99 => Step::LeavePassThrough {
                domain: self.domain(),
                dma: self.dma(),
            },
            _ => Step::Translation(true),
        }
    }

    fn scope(&mut self) -> Scope {
        self.random.pick(&[
            Scope::Exact,
            Scope::Exact,
            Scope::Exact,
            Scope::Domain,
            Scope::Global,
        ])
    }

    fn device(&mut self) -> u8 {
        self.random.below(2) as u8
    }

    /// A domain with tables.
    fn domain(&mut self) -> u8 {
        self.random.below(self.domains.len() as u64 - 1) as u8
    }

    fn any_domain(&mut self) -> u8 {
        self.random.below(self.domains.len() as u64) as u8
    }

    fn interface(&mut self) -> Interface {
        self.random
            .pick(&[Interface::Registers, Interface::Narrow, Interface::Wide])
    }

    fn slot(&mut self) -> u8 {
        if !self.mapped.is_empty() && self.random.chance(7, 8) {
            let mapped = std::mem::take(&mut self.mapped);
            let slot = self.random.pick(&mapped);
            self.mapped = mapped;
            slot
        } else {
            self.random.below(SLOTS.len() as u64) as u8
        }
    }

    fn map(&mut self, domain: u8) -> Step {
        let slot = if self.random.chance(1, 2) {
            self.slot()
        } else {
            self.random.below(SLOTS.len() as u64) as u8
        };
        self.mapped.push(slot);
        let all_rights = self.random.chance(2, 3);
        Step::Map {
            domain,
            slot,
            level: self.random.pick(&[1, 1, 2, 3]),
            target: if self.random.chance(1, 10) {
                Target::Interrupts
            } else {
                Target::Data(self.random.below(16) as u8)
            },
            rights: if all_rights {
                7
            } else {
                self.random.below(8) as u8
            },
            extra: if self.random.chance(1, 2) {
                self.random.bits()
            } else {
                1 << 32
            },
            scope: self.scope(),
        }
    }

    fn dma(&mut self) -> Dma {
        let offset = match self.random.below(4) {
            0 => 0,
            // Across the end of the page.
            1 => 0xff0 + self.random.below(16) as u16,
            _ => self.random.below(0x1000) as u16,
        };
        let address = match self.random.below(24) {
            0 => Address::Data(self.random.below(16) as u8, offset),
            1 => Address::Beyond(self.random.below(4) as u8, offset),
            2 => Address::Interrupt(self.random.bits() as u32),
            _ => Address::Slot(self.slot(), offset),
        };
        Dma {
            device: self.device(),
            write: self.random.chance(1, 2),
            address,
            len: match self.random.below(4) {
                0 => 4,
                1 => 8,
                _ => self.random.below(40) as u16 + 1,
            },
            keep_faults: self.random.chance(1, 6),
        }
    }

    fn flaw(&mut self) -> Flaw {
        match self.random.below(13) {
            0 => Flaw::RootAbsent,
            1 => Flaw::RootNowhere,
            2 => Flaw::ContextAbsent,
            3 => Flaw::ContextNowhere,
            4 => Flaw::DirectoryAbsent,
            5 => Flaw::DirectoryNowhere,
            6 | 7 => Flaw::TableNowhere,
            8 | 9 => Flaw::TranslationType(self.random.below(8) as u8),
            10 => Flaw::Width(self.random.pick(&[0, 3, 4, 5, 6, 7])),
            11 => Flaw::WidthMissing,
            _ => Flaw::PagingMode(self.random.below(3) as u8 + 1),
        }
    }

    fn reserved_place(&mut self) -> Place {
        match self.random.below(8) {
            0 => Place::Root,
            1 => Place::Context,
            2 => Place::Directory,
            3 | 4 => Place::Pasid,
            _ => Place::Table(self.random.below(4) as u8 + 1),
        }
    }

    /// A descriptor of some type with random fields, most of them 0. None that QEMU takes does
    /// more than invalidate: waits have no flag that acts but the status, and no address but one
    /// of statuses.
    fn descriptor(&mut self) -> [u64; 4] {
        let kind = self
            .random
            .pick(&[0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 13, 15]);
        let granularity = self.random.below(4);
        let mut words = [kind | granularity << 4, 0, 0, 0];
        if kind == 5 {
            // No flag or the fence alone, or a reserved bit beside the status.
            words[0] = 5 | self
                .random
                .pick(&[0, 1 << 6, 1 << 5 | 1 << 7, 1 << 5 | 1 << 8]);
            words[1] = crate::layout::STATUS + 0x400;
            return words;
        }
        match self.random.below(5) {
            0 => words[1] = self.random.below(64),
            3 => words[0] |= self.random.below(32) << 27,
            1 => words[0] |= 1 << self.random.below(64),
            2 => {
                let word = self.random.below(4) as usize;
                words[word] |= 1 << self.random.below(64);
            }
            _ => {}
        }
        // The type may have become that of a wait.
        if words[0] & 0xf == 5 {
            words[0] ^= 1;
        }
        if !self.unit.scalable() {
            words[2] = 0;
            words[3] = 0;
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use vtd_nest::arch::register::{Register32, Register64};
    use vtd_nest::mem::Registers;

    use super::*;
    use crate::configuration::{ALL, Base};

    /// The capability registers of QEMU's unit with second-stage tables.
    struct SecondStage;

    impl Registers for SecondStage {
        fn read32(&self, _: Register32) -> u32 {
            0x10
        }
        fn write32(&mut self, _: Register32, _: u32) {}
        fn read64(&self, register: Register64) -> u64 {
            if register == Register64::CAPABILITY {
                0x00d2_008c_222f_0606
            } else {
                0x4800_80f0_0f4a
            }
        }
        fn write64(&mut self, _: Register64, _: u64) {}
        fn window_bytes(&self) -> u64 {
            4096
        }
    }

    #[test]
    fn a_seed_gives_the_same_program_again() {
        let configuration = ALL
            .iter()
            .find(|configuration| configuration.base == Base::SecondStage);
        let unit = Unit::read(&SecondStage, configuration.unwrap());
        assert_eq!(generate(7, &unit), generate(7, &unit));
        assert_ne!(generate(7, &unit).steps, generate(8, &unit).steps);
        let program = generate(7, &unit);
        assert!(program.steps.len() as u64 > STEPS);
        assert!(program.domains.iter().all(|domain| domain.domain_id != 0));
    }
}
