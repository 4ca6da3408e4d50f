//! A VT-d remapping unit in software, to test vtd-nest against.
//!
//! The model follows the specification, not the library: it shares bit layouts (`vtd_nest::arch`)
//! and the seams (`vtd_nest::mem`) with it, and no logic. Where the architecture leaves hardware a
//! choice, the model takes the one that is hardest on software: caches keep everything until a
//! covering invalidation ([`CacheMode::Hoarder`]), walks that are not snooped see only flushed
//! lines, a queue may complete late or never. What software must not do is a [`Violation`].
//!
//! Section and table numbers are those of the VT-d specification, Revision 5.10.
//!
//! ```
//! use vtd_model::{Machine, ModelConfig};
//! use vtd_nest::arch::register::Register64;
//! use vtd_nest::mem::Registers;
//!
//! let machine = Machine::new(ModelConfig::nesting_server());
//! let registers = machine.unit.clone();
//! assert_ne!(registers.read64(Register64::CAPABILITY), 0);
//! machine.unit.assert_no_violations();
//! ```

mod ats;
mod bits;
mod cache;
mod clock;
mod config;
mod device_tlb;
mod dma;
mod domain_rules;
mod edu;
mod event;
mod fault;
mod guest;
mod hypervisor;
mod initiator;
mod interrupt;
mod memory;
mod page_request;
pub mod pieces;
mod protected;
mod queue;
mod queue_order;
mod registers;
mod translate;
mod unit;
mod violation;
mod walk;

pub use ats::{CompletionStatus, TranslationCompletion, TranslationData};
pub use cache::CacheMode;
pub use clock::Clock;
pub use config::{FetchOrder, ModelConfig, Pace};
pub use device_tlb::{DeviceTlbEntry, DeviceTlbMode};
pub use dma::{Access, Request, Translation};
pub use edu::Edu;
pub use event::{EventKind, EventMessage};
pub use fault::Fault;
pub use guest::GuestRam;
pub use hypervisor::{BusMasterChange, DeliveredInterrupt, Machine, ModelHypervisor};
pub use initiator::{DmaError, Initiator};
pub use interrupt::{DeliveryMode, DeviceInterrupt, InterruptOutcome, ProcessorInterrupt};
pub use memory::{Fetch, FlushMode, Memory, MemoryEvent, MemorySnapshot};
pub use page_request::{PageRequest, PageRequestOutcome, PageResponse, ResponseCode};
pub use queue::SubmittedDescriptor;
pub use queue_order::QueueOrder;
pub use unit::{Counters, ModelUnit};
pub use violation::Violation;
