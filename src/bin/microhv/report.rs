//! What a run shows: lines for people, and lines for machines that start with `@json `.

use core::fmt;

use vtd_nest::arch::capability::Features;
use vtd_nest::arch::register::FaultRecord;
use vtd_nest::nest::FaultOutcome;

use crate::console::println;

/// Prints a unit's capability registers, as `unit` (the physical one) or `shown` (the guest's).
pub(crate) fn capabilities(which: &str, features: &Features) {
    let (capability, extended) = (features.capability, features.extended);
    let flag = |set: bool, name: &'static str| if set { name } else { "" };
    println!(
        "{which:>6}: CAP {:#018x} ECAP {:#018x}, {}-bit guest addresses, {}-bit host addresses",
        capability.bits(),
        extended.bits(),
        capability.maximum_guest_address_width(),
        features.host_address_width
    );
    println!(
        "        {}{}{}{}{}{}{}{}domain-ids of {} bits, PASIDs of {} bits, {} fault records",
        flag(extended.has_scalable_mode(), "scalable mode, "),
        flag(extended.has_first_stage(), "first-stage, "),
        flag(extended.has_second_stage(), "second-stage, "),
        flag(extended.has_nested(), "nested, "),
        flag(extended.has_pass_through(), "pass-through, "),
        flag(capability.has_caching_mode(), "caching mode, "),
        flag(extended.is_coherent(), "coherent, "),
        flag(extended.has_interrupt_remapping(), "interrupt remapping, "),
        capability.domain_id_bits(),
        if extended.has_pasid() {
            extended.pasid_bits()
        } else {
            0
        },
        capability.fault_record_count()
    );
    println!(
        "@json {{\"{which}\":{{\"cap\":\"{:#018x}\",\"ecap\":\"{:#018x}\"}}}}",
        capability.bits(),
        extended.bits()
    );
}

/// Prints the back end in use.
pub(crate) fn backend(name: &str) {
    println!("back end: {name}");
    println!("@json {{\"backend\":\"{name}\"}}");
}

/// A step's figures by name.
pub(crate) type Figure<'a> = (&'a str, u64);

/// Prints a step and whether it held.
pub(crate) fn step(name: &str, ok: bool, figures: &[Figure<'_>]) {
    let verdict = if ok { "ok" } else { "FAILED" };
    crate::console::print(format_args!("{name:>16}: {verdict:<6}"));
    for (name, value) in figures {
        crate::console::print(format_args!(" {value} {name}"));
    }
    println!();
    crate::console::print(format_args!(
        "@json {{\"step\":{{\"name\":\"{name}\",\"ok\":{ok},\"figures\":{{"
    ));
    object(figures);
    println!("}}}}}}");
}

/// Prints a step that cannot be run on this machine, and why. Whoever starts the machine knows whether
/// that is an error; for the image it holds: the answer is `true`.
pub(crate) fn skipped(name: &str, why: &str) -> bool {
    println!("{name:>16}: skipped, {why}");
    println!(
        "@json {{\"step\":{{\"name\":\"{name}\",\"ok\":true,\"skipped\":\"{why}\",\"figures\":{{}}}}}}"
    );
    true
}

/// Prints the totals of the run.
pub(crate) fn totals(figures: &[Figure<'_>]) {
    all("totals", figures);
}

/// Prints the exits of the run by kind.
pub(crate) fn exits(figures: &[Figure<'_>]) {
    all("exits", figures);
}

fn all(title: &str, figures: &[Figure<'_>]) {
    crate::console::print(format_args!("{title:>16}:"));
    for (name, value) in figures {
        crate::console::print(format_args!(" {value} {name}"));
    }
    println!();
    crate::console::print(format_args!("@json {{\"{title}\":{{"));
    object(figures);
    println!("}}}}");
}

/// The members of a JSON object.
fn object(figures: &[Figure<'_>]) {
    for (index, (name, value)) in figures.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        crate::console::print(format_args!("{comma}\"{name}\":{value}"));
    }
}

/// One line that explains a hardware fault.
pub(crate) struct Explained<'a>(pub(crate) &'a FaultRecord, pub(crate) &'a FaultOutcome);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.0, self.1)
    }
}
