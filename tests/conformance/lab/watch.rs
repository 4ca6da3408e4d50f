//! A device that never rests: it reads one address after each of the library's steps.

use std::cell::RefCell;
use std::rc::Rc;

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::id::SourceId;

use super::expect::stamped_page;
use super::{Guest, Lab};

/// Pages whose stamps the device has read, in order; `None` where a read was blocked.
type Seen = Vec<Option<u64>>;

/// A device at work. Its blocked reads leave fault records.
pub(crate) struct Watch {
    lab: Rc<Lab>,
    seen: Rc<RefCell<Seen>>,
}

impl Guest {
    /// Lets a device read an address after each store and each submission of the library.
    pub(crate) fn watch(&self, source_id: SourceId, tag: Option<u32>, iova: u64) -> Watch {
        let seen = Rc::new(RefCell::new(Seen::new()));
        let (requester, number) = (self.requester(source_id, tag), self.number());
        let into = seen.clone();
        self.lab.hypervisor.on_step(move |hypervisor| {
            let mut bytes = [0; 8];
            hypervisor.dma_read(requester, Iova::new(iova), &mut bytes);
            let page = stamped_page(u64::from_le_bytes(bytes), number);
            into.borrow_mut().push(page);
        });
        Watch {
            lab: self.lab.clone(),
            seen,
        }
    }
}

impl Watch {
    /// What it has read since the last call; it goes on.
    pub(crate) fn take(&self) -> Seen {
        self.seen.take()
    }

    /// Stops the device: what it has read.
    pub(crate) fn end(self) -> Seen {
        self.lab.hypervisor.clear_hooks();
        self.seen.take()
    }

    /// Stops the device, which has read nothing but these pages, or was blocked.
    #[track_caller]
    pub(crate) fn expect_only(self, pages: &[u64]) {
        let seen = self.end();
        let foreign = seen.iter().flatten().find(|page| !pages.contains(page));
        assert_eq!(foreign, None, "the device reads another page meanwhile");
    }
}
