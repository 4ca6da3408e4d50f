//! The configurations of the remapping unit that the image is booted with.

use std::fmt;

use crate::qemu::{Qemu, UnitKind};

/// One configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Configuration {
    /// What the unit offers.
    pub(crate) unit: UnitKind,
    /// Width of its tables in bits: 39 or 48.
    pub(crate) width: u8,
    /// Whether it caches what is not present.
    pub(crate) caching_mode: bool,
    /// Whether it can remap interrupts.
    pub(crate) interrupts: bool,
    /// Whether it can force requests to be snooped.
    pub(crate) snoop_control: bool,
}

impl Configuration {
    /// The plain unit: second-stage tables of 48 bits in scalable mode, interrupt remapping.
    pub(crate) const PLAIN: Self = Self {
        unit: UnitKind::SecondStage,
        width: 48,
        caching_mode: false,
        interrupts: true,
        snoop_control: false,
    };

    /// Every configuration: widths, caching mode and interrupt remapping in all combinations.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for unit in [
            UnitKind::SecondStage,
            UnitKind::Legacy,
            UnitKind::FirstStage,
        ] {
            // First-stage tables have 48 bits.
            let widths: &[u8] = match unit {
                UnitKind::FirstStage => &[48],
                UnitKind::SecondStage | UnitKind::Legacy => &[48, 39],
            };
            for &width in widths {
                for caching_mode in [false, true] {
                    for interrupts in [true, false] {
                        all.push(Self {
                            unit,
                            width,
                            caching_mode,
                            interrupts,
                            ..Self::PLAIN
                        });
                    }
                }
            }
        }
        all.push(Self {
            snoop_control: true,
            ..Self::PLAIN
        });
        all
    }

    /// The unit's options; `None` if this QEMU has no such unit.
    pub(crate) fn options(&self, qemu: &Qemu) -> Option<String> {
        let mut extra = format!("aw-bits={}", self.width);
        for (set, option) in [
            (self.caching_mode, "caching-mode=on"),
            (self.snoop_control, "snoop-control=on"),
        ] {
            if set {
                extra.push(',');
                extra.push_str(option);
            }
        }
        qemu.options(self.unit, self.interrupts, &extra)
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.unit {
            UnitKind::SecondStage => "second-stage",
            UnitKind::Legacy => "legacy unit",
            UnitKind::FirstStage => "first stage only",
        })?;
        for (set, name) in [
            (self.width == 39, "39-bit tables"),
            (self.caching_mode, "caching mode"),
            (self.snoop_control, "snoop control"),
            (!self.interrupts, "no interrupt remapping"),
        ] {
            if set {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_differ_in_name() {
        let all = Configuration::all();
        let mut names: Vec<_> = all.iter().map(ToString::to_string).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len());
        assert_eq!(Configuration::PLAIN.to_string(), "second-stage");
        assert!(
            names.contains(
                &"legacy unit, 39-bit tables, caching mode, no interrupt remapping".into()
            )
        );
    }
}
