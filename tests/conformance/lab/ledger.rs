//! What a machine holds, and what a change costs.

use vtd_nest::unit::Unit;

use super::Guest;

/// What a machine has of its host, and the unit has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Holdings {
    /// Frames charged to the machine.
    pub(crate) charged_frames: u32,
    /// Domain-ids that the units can still give.
    pub(crate) free_domain_ids: u32,
}

impl Guest {
    pub(crate) fn holdings(&self) -> Holdings {
        let units = self.lab.units.iter();
        Holdings {
            charged_frames: self.lab.hypervisor.pool().charged_frames(self.owner()),
            free_domain_ids: units.map(Unit::free_domain_ids).sum(),
        }
    }

    /// What the guest does costs hardware nothing: no store to anything that is not the guest's,
    /// no submission, nothing bound or unbound, and nothing held more or less.
    #[track_caller]
    pub(crate) fn expect_no_operation(&mut self, act: impl FnOnce(&mut Self)) {
        let lab = self.lab.clone();
        let before = (
            lab.hypervisor.counts().submissions,
            self.vm.statistics(),
            self.holdings(),
        );
        lab.hypervisor.record_stores();
        act(self);
        assert_eq!(lab.hypervisor.take_stores(), [], "stores");
        let after = (
            lab.hypervisor.counts().submissions,
            self.vm.statistics(),
            self.holdings(),
        );
        assert_eq!(after, before);
    }
}
