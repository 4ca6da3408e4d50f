//! A unit's registers with a tap: writes are remembered, and reads may be falsified.

use std::cell::RefCell;
use std::rc::Rc;

use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::Registers;
use vtd_nest::unit::{Unit, UnitConfig, UnitError};

use super::Place;
use crate::bench::{Interposer, Observed};

/// A write to a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RegisterWrite {
    pub(crate) offset: u16,
    pub(crate) value: u64,
    /// `GSTS_REG` before it.
    pub(crate) status: u32,
}

/// What a scenario holds of a [`Tapped`] unit.
#[derive(Default)]
pub(crate) struct Tap {
    /// What reads at these offsets give instead of hardware's value.
    pub(crate) reads: RefCell<Vec<(u16, u64)>>,
    /// What has been written.
    pub(crate) writes: RefCell<Vec<RegisterWrite>>,
    /// Accesses that do not lie in the register window: offset.
    pub(crate) outside: RefCell<Vec<u16>>,
}

impl Tap {
    /// Lets reads at an offset give a value instead of hardware's.
    pub(crate) fn falsify(&self, offset: u16, value: u64) {
        self.reads.borrow_mut().push((offset, value));
    }

    fn false_value(&self, offset: u16) -> Option<u64> {
        let reads = self.reads.borrow();
        let found = reads.iter().rev().find(|(at, _)| *at == offset);
        found.map(|(_, value)| *value)
    }
}

/// Registers with a tap.
pub(crate) struct Tapped {
    inner: Observed,
    tap: Rc<Tap>,
}

impl Tapped {
    /// Notes the access; whether it lies in the window.
    fn is_inside(&self, offset: u16, len_bytes: u64) -> bool {
        let inside = u64::from(offset) + len_bytes <= self.inner.window_bytes();
        if !inside {
            self.tap.outside.borrow_mut().push(offset);
        }
        inside
    }

    fn note(&self, offset: u16, value: u64) {
        let status = self.inner.read32(Register32::GLOBAL_STATUS);
        self.tap.writes.borrow_mut().push(RegisterWrite {
            offset,
            value,
            status,
        });
    }
}

impl Registers for Tapped {
    fn read32(&self, register: Register32) -> u32 {
        let offset = register.offset();
        match self.tap.false_value(offset) {
            Some(value) => value as u32,
            None if self.is_inside(offset, 4) => self.inner.read32(register),
            None => u32::MAX,
        }
    }

    fn write32(&mut self, register: Register32, value: u32) {
        self.note(register.offset(), value.into());
        if self.is_inside(register.offset(), 4) {
            self.inner.write32(register, value);
        }
    }

    fn read64(&self, register: Register64) -> u64 {
        let offset = register.offset();
        match self.tap.false_value(offset) {
            Some(value) => value,
            None if self.is_inside(offset, 8) => self.inner.read64(register),
            None => u64::MAX,
        }
    }

    fn write64(&mut self, register: Register64, value: u64) {
        self.note(register.offset(), value);
        if self.is_inside(register.offset(), 8) {
            self.inner.write64(register, value);
        }
    }

    fn window_bytes(&self) -> u64 {
        self.inner.window_bytes()
    }
}

impl Place<'_> {
    /// A bench on which nothing has been programmed.
    pub(crate) fn unprogrammed(self) -> Rc<Interposer> {
        Interposer::new(self.profile.start(1).expect("the bench starts"))
    }
}

/// The first unit, probed through a tap; nothing of it is programmed.
pub(crate) fn probe_tapped(
    hypervisor: &Rc<Interposer>,
    tap: &Rc<Tap>,
) -> Result<Unit<Tapped>, UnitError> {
    let registers = Tapped {
        inner: hypervisor.registers(0).expect("a unit"),
        tap: tap.clone(),
    };
    let width = hypervisor.bench().host_address_width();
    Unit::probe(registers, UnitConfig::new(0, width))
}
