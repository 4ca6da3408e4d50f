//! Page requests (S71 to S77): nothing to run until the library handles them.

use crate::harness::Scenario;

const LATER: &str = "page requests, later";

pub(super) const SCENARIOS: &[Scenario] = &[
    super::unwritten(
        "S71",
        "a page request reaches the guest's queue, its response the device",
        LATER,
    ),
    super::unwritten(
        "S72",
        "a page request of a device not enabled for it is recorded as 47",
        LATER,
    ),
    super::unwritten(
        "S73",
        "a full queue overflows, and loses nothing after it is cleared",
        LATER,
    ),
    super::unwritten(
        "S74",
        "a response of failure reaches that device alone",
        LATER,
    ),
    super::unwritten(
        "S75",
        "a PASID torn down has its outstanding requests drained or answered",
        LATER,
    ),
    super::unwritten("S76", "a page request without PASID is delivered", LATER),
    super::unwritten(
        "S77 G35",
        "a group of 512 pages is delivered, forged responses are ignored",
        LATER,
    ),
];
