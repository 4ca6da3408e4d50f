//! The first job of the image: the main job with guests that are built in, and its proof.
//!
//! | module | job |
//! |---|---|
//! | `hypervisor` | units and machines set up, faults of hardware handed on |
//! | `machine` | one machine, its memory on the host and its device |
//! | `exits` | the exits of a machine's guest |
//! | `guest` | the guest: a driver that hosted tests include too |
//! | `proof` | the steps of one guest, each checked by the hypervisor |
//! | `two_machines` | two guests at the same addresses, and nothing of one in the other |
//! | `edu` | the device that a guest is given |

mod edu;
mod exits;
mod guest;
mod hypervisor;
mod machine;
mod proof;
mod two_machines;

use vtd_nest::nest::Policy;

use crate::platform::Platform;

use hypervisor::{Hypervisor, SetUpError};

/// Runs the job; whether everything held.
//
// A frame of its own, so that the other job has all of the stack.
#[inline(never)]
pub(crate) fn run(platform: Platform) -> Result<bool, SetUpError> {
    let mut hypervisor = Hypervisor::set_up(platform, Policy::default())?;
    let (first, held) = proof::run(&mut hypervisor);
    Ok(first.is_some_and(|first| two_machines::run(&mut hypervisor, first)) && held)
}
