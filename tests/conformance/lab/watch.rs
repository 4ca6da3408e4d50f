//! A device that is active between any two steps of the library.

use std::cell::RefCell;
use std::rc::Rc;

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::id::SourceId;

use super::Guest;

/// What a watching device has read.
pub(crate) struct Watch(Rc<RefCell<Vec<Option<u64>>>>);

impl Watch {
    /// The pages whose stamps were read, step by step; `None` where the request was blocked.
    pub(crate) fn take(&self) -> Vec<Option<u64>> {
        self.0.take()
    }
}

impl Guest {
    /// Lets a device read at an address after each step, until the hooks are cleared.
    pub(crate) fn watch(&self, source_id: SourceId, tag: Option<u32>, iova: u64) -> Watch {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (requester, number) = (self.requester(source_id, tag), self.number());
        let into = seen.clone();
        self.lab.hypervisor.on_step(move |hypervisor| {
            let mut bytes = [0; 8];
            hypervisor.dma_read(requester, Iova::new(iova), &mut bytes);
            let page = Self::page_of_stamp(number, u64::from_le_bytes(bytes));
            into.borrow_mut().push(page);
        });
        Watch(seen)
    }
}
