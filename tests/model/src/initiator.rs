//! A device as the source of every kind of request (§3.1, §4.1).

use std::fmt;

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::id::{Pasid, SourceId};

use crate::ats::{CompletionStatus, TranslationCompletion};
use crate::device_tlb::Route;
use crate::dma::{Access, Request, chunk, next};
use crate::fault::Fault;
use crate::unit::{ModelUnit, Unit};

/// Why an access of a device did not come about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmaError {
    /// The unit blocked the request.
    Fault(Fault),
    /// The unit does not take such requests, which is no fault (§4.2.1).
    Unsupported,
    /// The translation request was answered without data.
    TranslationFailed(CompletionStatus),
    /// The translation does not allow it; the device may send a page request (§7.1.2).
    Recoverable,
}

impl DmaError {
    /// The code of the fault reason, if a fault blocked the request.
    pub fn code(&self) -> Option<u8> {
        match self {
            Self::Fault(fault) => Some(fault.reason.code()),
            _ => None,
        }
    }
}

impl From<Fault> for DmaError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// A device about to do DMA: who it is, and what its requests carry.
///
/// ```
/// use vtd_model::{Machine, ModelConfig};
/// use vtd_nest::arch::address::Iova;
/// use vtd_nest::arch::id::{Pasid, SourceId};
///
/// let machine = Machine::new(ModelConfig::device_tlb_server());
/// let device = machine.unit.initiator(SourceId::from_u16(0x10));
/// let process = device.with_pasid(Pasid::new(5).unwrap()).through_device_tlb();
/// # let mut buffer = [0; 8];
/// // Translation is off: the unit takes no translation request.
/// assert!(process.read(Iova::new(0x1000), &mut buffer).is_err());
/// device.read(Iova::new(0x1000), &mut buffer).unwrap();
/// ```
#[derive(Clone, Copy)]
pub struct Initiator<'a> {
    unit: &'a ModelUnit,
    source_id: SourceId,
    pasid: Option<Pasid>,
    privileged: bool,
    execute: bool,
    device_tlb: bool,
}

impl fmt::Debug for Initiator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initiator")
            .field("source_id", &self.source_id)
            .field("pasid", &self.pasid)
            .finish_non_exhaustive()
    }
}

impl<'a> Initiator<'a> {
    /// Its requests carry a PASID.
    #[must_use]
    pub fn with_pasid(self, pasid: Pasid) -> Self {
        Self {
            pasid: Some(pasid),
            ..self
        }
    }

    /// Its requests are supervisor ones (with a PASID only).
    #[must_use]
    pub fn privileged(self) -> Self {
        Self {
            privileged: true,
            ..self
        }
    }

    /// Its reads and translation requests ask for execution (with a PASID only).
    #[must_use]
    pub fn executing(self) -> Self {
        Self {
            execute: true,
            ..self
        }
    }

    /// Reads, writes and atomic accesses go by its device-TLB: what that does not hold is asked
    /// for, and what it holds is accessed by translated requests. While ATS is switched off they
    /// are untranslated.
    #[must_use]
    pub fn through_device_tlb(self) -> Self {
        Self {
            device_tlb: true,
            ..self
        }
    }

    fn request(&self, address: u64, access: Access) -> Request {
        Request {
            privileged: self.privileged,
            execute: self.execute && access == Access::Read,
            ..Request::new(self.source_id, self.pasid, Iova::new(address), access)
        }
    }

    /// Runs with the unit, up to date.
    fn with_unit<T>(&self, act: impl FnOnce(&mut Unit) -> T) -> T {
        let mut unit = self.unit.0.borrow_mut();
        unit.advance(false);
        act(&mut unit)
    }

    /// Reads memory, page by page. An empty buffer is a zero-length read.
    ///
    /// # Errors
    ///
    /// Why the first page that is not read was not; the pages before it are in the buffer.
    pub fn read(&self, at: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        let request = self.request(at.as_u64(), Access::Read);
        self.with_unit(|unit| {
            if !self.device_tlb {
                return unit.read(request, into).map_err(DmaError::from);
            }
            unit.each_page(request, into.len(), |unit, page, range| {
                let part = &mut into[range];
                match unit.host_of(page)? {
                    Some(host) => unit.read_host(host, part),
                    None => unit.read(*page, part)?,
                }
                Ok(())
            })
        })
    }

    /// Writes memory, page by page; 4 bytes without PASID at 0xFEEx_xxxx are an interrupt.
    ///
    /// # Errors
    ///
    /// Why the first page that is not written was not; the pages before it have been.
    pub fn write(&self, at: Iova, from: &[u8]) -> Result<(), DmaError> {
        let request = self.request(at.as_u64(), Access::Write);
        self.with_unit(|unit| {
            if !self.device_tlb {
                return unit.write(request, from).map_err(DmaError::from);
            }
            unit.each_page(request, from.len(), |unit, page, range| {
                let part = &from[range];
                match unit.host_of(page)? {
                    Some(host) => unit.write_host(host, part),
                    None => unit.write(*page, part)?,
                }
                Ok(())
            })
        })
    }

    /// Adds to a quadword in one atomic operation; the old value. `at` is aligned to 8 bytes.
    ///
    /// # Errors
    ///
    /// Why it was not done.
    pub fn fetch_add(&self, at: Iova, value: u64) -> Result<u64, DmaError> {
        let request = self.request(at.as_u64(), Access::Atomic);
        self.with_unit(|unit| {
            if !self.device_tlb {
                return unit.fetch_add(&request, value).map_err(DmaError::from);
            }
            match unit.host_of(&request)? {
                Some(host) => Ok(unit.add_to_host(host, value)),
                None => Ok(unit.fetch_add(&request, value)?),
            }
        })
    }

    /// Sends a translation request and puts the answer into the device-TLB; with `no_write`, for
    /// reads only (`NW`).
    pub fn translate(&self, at: Iova, no_write: bool) -> TranslationCompletion {
        let request = self.request(at.as_u64(), Access::Read);
        self.with_unit(|unit| unit.ask_translation(&request, no_write))
    }

    /// Reads by translated requests, to whatever host address, as a device that lies may.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_translated(&self, at: Hpa, into: &mut [u8]) -> Result<(), DmaError> {
        let request = self.request(at.as_u64(), Access::Read);
        self.with_unit(|unit| {
            unit.each_page(request, into.len(), |unit, page, range| {
                let host = unit.translated_request(page)?;
                unit.read_host(host, &mut into[range]);
                Ok(())
            })
        })
    }

    /// Writes by translated requests, to whatever host address, as a device that lies may.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn write_translated(&self, at: Hpa, from: &[u8]) -> Result<(), DmaError> {
        let request = self.request(at.as_u64(), Access::Write);
        self.with_unit(|unit| {
            unit.each_page(request, from.len(), |unit, page, range| {
                let host = unit.translated_request(page)?;
                unit.write_host(host, &from[range]);
                Ok(())
            })
        })
    }

    /// Adds to a quadword by a translated request, as [`fetch_add`](Self::fetch_add).
    ///
    /// # Errors
    ///
    /// Why it was not done.
    pub fn fetch_add_translated(&self, at: Hpa, value: u64) -> Result<u64, DmaError> {
        let request = self.request(at.as_u64(), Access::Atomic);
        self.with_unit(|unit| {
            let host = unit.translated_request(&request)?;
            Ok(unit.add_to_host(host, value))
        })
    }
}

impl Unit {
    /// Cuts an access of `length` bytes into pages, at least one.
    fn each_page(
        &mut self,
        mut request: Request,
        length: usize,
        mut act: impl FnMut(&mut Self, &Request, std::ops::Range<usize>) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        request.zero_length = length == 0;
        let mut done = 0;
        loop {
            let now = chunk(&request, length - done);
            act(self, &request, done..done + now)?;
            done += now;
            if done == length {
                return Ok(());
            }
            request.address = next(request.address, now);
        }
    }

    /// The host address for an access through the device-TLB, the translated request checked;
    /// `None` if the device has to send an untranslated one.
    fn host_of(&mut self, request: &Request) -> Result<Option<u64>, DmaError> {
        match self.route(request) {
            Route::Untranslated => Ok(None),
            Route::Translated(host) => {
                let translated = Request {
                    address: Iova::new(host),
                    pasid: request
                        .pasid
                        .filter(|_| self.sends_translated_pasid(request)),
                    ..*request
                };
                self.translated_request(&translated).map(Some)
            }
            Route::Recoverable => Err(DmaError::Recoverable),
            Route::Failed(status) => Err(DmaError::TranslationFailed(status)),
        }
    }

    fn read_host(&mut self, host: u64, into: &mut [u8]) {
        if !self.memory.device_read(host, into) {
            self.note_outside(host);
        }
    }

    fn write_host(&mut self, host: u64, from: &[u8]) {
        if !self.memory.device_write(host, from) {
            self.note_outside(host);
        }
    }

    fn add_to_host(&mut self, host: u64, value: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read_host(host, &mut bytes);
        let old = u64::from_le_bytes(bytes);
        self.write_host(host, &old.wrapping_add(value).to_le_bytes());
        old
    }
}

impl ModelUnit {
    /// A device that may send any request.
    pub fn initiator(&self, source_id: SourceId) -> Initiator<'_> {
        Initiator {
            unit: self,
            source_id,
            pasid: None,
            privileged: false,
            execute: false,
            device_tlb: false,
        }
    }
}
