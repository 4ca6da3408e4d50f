//! Devices: DMA requests and the interrupts they send.

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::{Pasid, SourceId};

use crate::bits;
use crate::cache::Blocked;
use crate::fault::Fault;
use crate::translate::Located;
use crate::unit::{ModelUnit, Unit};

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Reads and writes as one.
    Atomic,
}

/// One untranslated request, for an address in one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The requester.
    pub source_id: SourceId,
    /// The PASID, if the request has one.
    pub pasid: Option<Pasid>,
    /// The address.
    pub address: Iova,
    /// What it does.
    pub access: Access,
    /// Supervisor privilege (with a PASID only).
    pub privileged: bool,
    /// Asks for execution (with a PASID, reads only).
    pub execute: bool,
    /// A read of no bytes.
    pub zero_length: bool,
}

impl Request {
    /// A plain request.
    pub fn new(source_id: SourceId, pasid: Option<Pasid>, address: Iova, access: Access) -> Self {
        Self {
            source_id,
            pasid,
            address,
            access,
            privileged: false,
            execute: false,
            zero_length: false,
        }
    }
}

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The host address.
    pub host: Hpa,
    /// Last host address up to which the translation holds.
    pub last: Hpa,
}

impl Unit {
    /// Translates a request, or blocks it.
    fn request(&mut self, request: &Request) -> Result<Located, Fault> {
        if request.pasid.is_none() && bits::is_interrupt_address(request.address.as_u64()) {
            if request.zero_length && request.access == Access::Read {
                let address = request.address.as_u64();
                return Ok(Located {
                    host: address,
                    last: address | 0xfff,
                });
            }
            return Err(self.block(
                request,
                Blocked {
                    reason: FaultReason::InterruptAddressMisused,
                    fault_disable: false,
                },
            ));
        }
        if !self.registers.translation_enabled() {
            let address = request.address.as_u64();
            return Ok(Located {
                host: address,
                last: address | 0xfff,
            });
        }
        match self.translate(request) {
            Ok(located) => Ok(located),
            Err(blocked) => Err(self.block(request, blocked)),
        }
    }

    pub(crate) fn read(&mut self, mut request: Request, into: &mut [u8]) -> Result<(), Fault> {
        if into.is_empty() {
            request.zero_length = true;
            return self.request(&request).map(|_| ());
        }
        let mut rest = into;
        while !rest.is_empty() {
            let located = self.request(&request)?;
            let length = chunk(&request, rest.len());
            let (now, later) = rest.split_at_mut(length);
            if self.drops_protected(request.address.as_u64(), located.host, length) {
                now.fill(0xff);
            } else if !self.memory.device_read(located.host, now) {
                self.note_outside(located.host);
            }
            request.address = next(request.address, length);
            rest = later;
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, mut request: Request, from: &[u8]) -> Result<(), Fault> {
        let address = request.address.as_u64();
        if request.pasid.is_none()
            && bits::is_interrupt_address(address)
            && address.is_multiple_of(4)
            && let Ok(data) = from.try_into()
        {
            return self.interrupt(&request, u32::from_le_bytes(data));
        }
        let mut rest = from;
        while !rest.is_empty() {
            let located = self.request(&request)?;
            let (now, later) = rest.split_at(chunk(&request, rest.len()));
            let is_dropped =
                self.drops_protected(request.address.as_u64(), located.host, now.len());
            if !is_dropped && !self.memory.device_write(located.host, now) {
                self.note_outside(located.host);
            }
            request.address = next(request.address, now.len());
            rest = later;
        }
        Ok(())
    }

    pub(crate) fn fetch_add(&mut self, request: &Request, value: u64) -> Result<u64, Fault> {
        let located = self.request(request)?;
        if self.drops_protected(request.address.as_u64(), located.host, 8) {
            return Ok(u64::MAX);
        }
        let mut bytes = [0; 8];
        let there = self.memory.device_read(located.host, &mut bytes);
        let old = u64::from_le_bytes(bytes);
        let new = old.wrapping_add(value).to_le_bytes();
        if !there || !self.memory.device_write(located.host, &new) {
            self.note_outside(located.host);
        }
        Ok(old)
    }
}

/// How much of `length` bytes lies in the request's page.
pub(crate) fn chunk(request: &Request, length: usize) -> usize {
    length.min((4096 - request.address.page_offset()) as usize)
}

pub(crate) fn next(address: Iova, length: usize) -> Iova {
    Iova::new(address.as_u64().wrapping_add(length as u64))
}

impl ModelUnit {
    /// Translates one request as a device's DMA would be, faults recorded; nothing is moved.
    ///
    /// # Errors
    ///
    /// The fault that blocks it.
    pub fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        let mut unit = self.0.borrow_mut();
        unit.advance(false);
        unit.request(request).map(|located| Translation {
            host: Hpa::new(located.host),
            last: Hpa::new(located.last),
        })
    }

    /// A device reads memory, page by page. An empty buffer is a zero-length read. Protected memory
    /// reads as all ones, and writes to it are dropped.
    ///
    /// # Errors
    ///
    /// The fault of the first blocked page; the pages before it have been read, nothing of it or
    /// behind it.
    pub fn dma_read(
        &self,
        source_id: SourceId,
        pasid: Option<Pasid>,
        address: Iova,
        into: &mut [u8],
    ) -> Result<(), Fault> {
        let mut unit = self.0.borrow_mut();
        unit.advance(false);
        unit.read(Request::new(source_id, pasid, address, Access::Read), into)
    }

    /// A device writes memory, page by page; 4 bytes without PASID at 0xFEEx_xxxx are an
    /// interrupt.
    ///
    /// # Errors
    ///
    /// The fault of the first blocked page; the pages before it have been written.
    pub fn dma_write(
        &self,
        source_id: SourceId,
        pasid: Option<Pasid>,
        address: Iova,
        from: &[u8],
    ) -> Result<(), Fault> {
        let mut unit = self.0.borrow_mut();
        unit.advance(false);
        unit.write(Request::new(source_id, pasid, address, Access::Write), from)
    }

    /// A device adds to a quadword in one atomic operation; the old value. `address` is aligned
    /// to 8 bytes.
    ///
    /// # Errors
    ///
    /// The fault that blocks it.
    pub fn dma_fetch_add(
        &self,
        source_id: SourceId,
        pasid: Option<Pasid>,
        address: Iova,
        value: u64,
    ) -> Result<u64, Fault> {
        let mut unit = self.0.borrow_mut();
        unit.advance(false);
        let request = Request::new(source_id, pasid, address, Access::Atomic);
        unit.fetch_add(&request, value)
    }
}
