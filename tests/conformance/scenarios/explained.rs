//! What the live tables are said to do with a request, against what hardware does with it.

use vtd_nest::arch::address::{Gpa, Iova};
use vtd_nest::arch::id::{Pasid, SourceId};
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::paging::walk;
use vtd_nest::unit::{ExplainRequest, Step};

use crate::bench::Access;
use crate::harness::{Scenario, scenario};
use crate::lab::{D0, D1, Guest, IOVA, OUTSIDE, Place};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "R29 S70",
    "live tables are explained as hardware reads them",
    explained,
)];

/// Tries a request, and has it explained: by where hardware led it, or by hardware's own record.
/// The entries read.
#[track_caller]
fn expect_agreement(
    name: &str,
    guest: &Guest,
    is_exact: bool,
    (device, tag): (SourceId, Option<u32>),
    iova: u64,
    access: Access,
) -> Vec<Step> {
    let lab = &guest.lab;
    lab.take_unclaimed_faults();
    let page = match access {
        Access::Read => guest.reached(device, tag, iova),
        Access::Write => {
            let moved = guest.gets_through(device, tag, iova, access);
            moved.then(|| guest.reached(device, tag, iova)).flatten()
        }
    };
    let records = lab.take_unclaimed_faults();
    let unit = &lab.units[0];
    let mut request = match records.first() {
        Some(record) => unit.request_of(record),
        None => ExplainRequest {
            source_id: guest.physical(device),
            pasid: tag.and_then(Pasid::new),
            address: Iova::new(iova),
            access: match access {
                Access::Read => walk::Access::READ,
                Access::Write => walk::Access::WRITE,
            },
            execute: false,
        },
    };
    request.address = Iova::new(iova);
    let mut steps = Vec::new();
    let explanation = unit.explain(&*lab.hypervisor, &request, |step| steps.push(*step));
    match (page, explanation.result) {
        (Some(page), Ok(translation)) => {
            let host = guest.host_of(Gpa::new(page));
            assert_eq!(translation.address, host, "{name}");
        }
        (None, Err(reason)) => {
            assert_eq!(request.source_id, guest.physical(device), "{name}");
            // An emulator may number its reasons otherwise (`tests/README.md`).
            if is_exact {
                let record = records.first().expect("hardware records why");
                assert_eq!(record.reason_code(), reason.code(), "{name}: {record}");
            }
        }
        other => panic!("{name}: {other:?}, {records:?}"),
    }
    steps
}

fn explained(place: Place<'_>) {
    let is_exact = place.profile.bench() == "model";
    for mut guest in place.each_guest() {
        let (pasid, tag) = (guest.pasid, guest.tag);
        let both = |guest: &Guest, name: &str, request, iova| {
            for access in [Access::Read, Access::Write] {
                expect_agreement(name, guest, is_exact, request, iova, access);
            }
        };
        both(&guest, "nothing bound", (D0, tag), IOVA);
        let (root, page) = guest.bound();
        let steps = expect_agreement("bound", &guest, is_exact, (D0, tag), IOVA, Access::Read);
        assert!(matches!(steps.first(), Some(Step::Root { .. })));
        let last = steps.last();
        assert!(
            matches!(last, Some(Step::SecondStage { level: 1, .. })),
            "{last:?}"
        );
        both(&guest, "not mapped by the guest", (D0, tag), IOVA + 0x1000);
        both(&guest, "another device", (D1, tag), IOVA);
        if tag.is_some() {
            both(&guest, "without PASID", (D0, None), IOVA);
        }
        guest.host_makes_read_only(page);
        both(&guest, "read-only for devices", (D0, tag), IOVA);
        let slot = guest.slot(root, IOVA);
        let before = guest.read_u64(slot);
        guest.write_u64(slot, before & 0xfff | OUTSIDE);
        guest.invalidate_pages(7, IOVA, 0);
        both(&guest, "no such memory", (D0, tag), IOVA);
        guest.set_entry(D0, pasid, &PasidEntry::default());
        guest.invalidate_pasid(7, pasid);
        both(&guest, "unbound", (D0, tag), IOVA);
        guest.set_translation(false);
        let data = guest.data_page();
        both(&guest, "translation off", (D0, None), data);
        both(
            &guest,
            "translation off, no such memory",
            (D0, None),
            OUTSIDE,
        );
        guest.finish();
    }
}
