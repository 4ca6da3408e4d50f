//! What the VT-d architecture defines, as pure values: encode, decode, validate. No I/O, no state.
//!
//! Section, table and figure numbers anywhere in this crate are those of the *Intel Virtualization
//! Technology for Directed I/O Architecture Specification*, Revision 5.10 (order number D51397-018).

pub mod address;
pub mod capability;
pub mod context;
pub mod descriptor;
pub mod dmar;
pub mod fault;
pub mod features;
pub mod first_stage;
pub mod id;
pub mod interrupt;
pub mod pasid;
pub mod pci;
mod quadwords;
pub mod register;
pub mod root;
pub mod second_stage;
pub(crate) mod told;
