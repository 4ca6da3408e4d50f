//! Guests of every kind that a unit can carry.

use super::{Guest, GuestOptions, Place};
use vtd_nest::nest::Policy;

impl Place<'_> {
    /// A guest that is shown what the unit gives and, where that is the first stage, another one,
    /// on a lab of its own, that is shown the second stage.
    pub(crate) fn each_guest(self) -> Vec<Guest> {
        self.each_guest_with(GuestOptions::default())
    }

    /// As [`each_guest`](Self::each_guest), otherwise.
    pub(crate) fn each_guest_with(self, options: GuestOptions) -> Vec<Guest> {
        let mut guests = vec![self.guest_with(options.clone())];
        if guests[0].is_first_stage() {
            guests.push(self.guest_with(GuestOptions {
                policy: Policy {
                    forbid_nesting: true,
                    ..options.policy
                },
                ..options
            }));
        }
        guests
    }
}
