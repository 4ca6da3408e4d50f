//! The first job of the image: the main job with a guest that is built in, and its proof.
//!
//! | module | job |
//! |---|---|
//! | `hypervisor` | the machine with one device, and the exits of its guest |
//! | `guest` | the guest: a driver that hosted tests include too |
//! | `proof` | the steps, each run by the guest and checked by the hypervisor |
//! | `edu` | the device that the guest is given |

mod edu;
mod guest;
mod hypervisor;
mod proof;

use vtd_nest::nest::Policy;

use crate::platform::Platform;

use hypervisor::{Hypervisor, SetUpError};

/// Runs the job; whether everything held.
//
// A frame of its own, so that the other job has all of the stack.
#[inline(never)]
pub(crate) fn run(platform: Platform) -> Result<bool, SetUpError> {
    let mut hypervisor = Hypervisor::set_up(platform, Policy::default())?;
    Ok(proof::run(&mut hypervisor))
}
