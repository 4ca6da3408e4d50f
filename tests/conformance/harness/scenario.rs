//! A scenario: its number, what it needs of a bench, whether the library is expected to pass it.

use vtd_nest::arch::capability::{CapabilityField, ExtendedCapabilityField};

use crate::bench::{Ability, Description};
use crate::lab::Place;

/// Something a scenario needs of a bench. The first one that is missing is why it is skipped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    /// The guest is shown first-stage translation: the unit nests.
    Nesting,
    /// The guest is shown scalable mode: the unit has second-stage translation there.
    ScalableMode,
    /// A bit or field of ECAP that is not 0, and its name.
    Extended(ExtendedCapabilityField, &'static str),
    /// A bit or field of CAP that is not 0, and its name.
    Capability(CapabilityField, &'static str),
    /// Something a device or the bench can do.
    Ability(Ability),
}

impl Need {
    /// Devices send requests with PASID.
    pub(crate) const PASID: Self = Self::Ability(Ability::RequestsWithPasid);

    /// Why a bench without it skips; `None` if it has it.
    pub(crate) fn missing(self, described: &Description) -> Option<String> {
        let nests = described.extended.has_nested();
        match self {
            Self::Nesting => (!nests).then(|| "ECAP.NEST=0".into()),
            Self::ScalableMode => {
                let has = |field| described.extended.field(field) != 0;
                [
                    (ExtendedCapabilityField::SCALABLE_MODE, "ECAP.SMTS=0"),
                    (ExtendedCapabilityField::SECOND_STAGE, "ECAP.SSTS=0"),
                ]
                .into_iter()
                .find_map(|(field, missing)| (!has(field)).then(|| missing.into()))
            }
            Self::Extended(field, name) => {
                (described.extended.field(field) == 0).then(|| format!("ECAP.{name}=0"))
            }
            Self::Capability(field, name) => {
                (described.capability.field(field) == 0).then(|| format!("CAP.{name}=0"))
            }
            Self::Ability(ability) => {
                (!described.abilities.contains(&ability)).then(|| ability.missing().into())
            }
        }
    }
}

/// Whether the library is expected to pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// It passes wherever the bench can run it.
    Passes,
    /// It waits for the named work. It is run all the same: where it passes it counts as passed,
    /// and if it passes on every bench that can run it, the mark has to go.
    #[allow(dead_code, reason = "for scenarios that come before what they show")]
    Pending(&'static str),
    /// There is nothing to run until the named work begins.
    Unwritten(&'static str),
}

/// One scenario.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    /// The numbers it shows: its own first (`S12`), then others, then rules (`G5`).
    pub(crate) numbers: &'static str,
    /// What happens, in words.
    pub(crate) name: &'static str,
    pub(crate) needs: &'static [Need],
    pub(crate) standing: Standing,
    pub(crate) run: fn(Place<'_>),
}

impl Scenario {
    /// Its own number.
    pub(crate) fn number(&self) -> &'static str {
        self.numbers.split_whitespace().next().unwrap_or_default()
    }

    /// Says what it needs beside a unit that the library drives.
    pub(crate) const fn needs(mut self, needs: &'static [Need]) -> Self {
        self.needs = needs;
        self
    }

    /// Marks it as waiting for the named work.
    #[allow(dead_code, reason = "for scenarios that come before what they show")]
    pub(crate) const fn pending(mut self, why: &'static str) -> Self {
        self.standing = Standing::Pending(why);
        self
    }

    /// Whether a pattern of the command line names it.
    pub(crate) fn matches(&self, pattern: &str) -> bool {
        let number = |number: &str| number.eq_ignore_ascii_case(pattern);
        self.numbers.split_whitespace().any(number) || self.name.contains(pattern)
    }
}

/// A scenario that the library passes on any unit that it drives.
pub(crate) const fn scenario(
    numbers: &'static str,
    name: &'static str,
    run: fn(Place<'_>),
) -> Scenario {
    Scenario {
        numbers,
        name,
        needs: &[],
        standing: Standing::Passes,
        run,
    }
}
