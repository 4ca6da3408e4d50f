//! Interrupt remapping: request formats, entries, posting, the interrupt-entry cache, commands.

use vtd_model::{
    CacheMode, DeliveryMode, EventKind, InterruptOutcome, ModelConfig, ModelUnit, Pace,
    ProcessorInterrupt, Violation,
};
use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::{HostMemory, Registers};

use crate::support::*;

const IRE: u32 = 1 << 25;
const SIRTP: u32 = 1 << 24;
const CFI: u32 = 1 << 23;
const EIME: u64 = 1 << 11;
/// Bits of the first quadword of an entry.
const P: u64 = 1;
const FPD: u64 = 2;
const IM: u64 = 1 << 15;
const URG: u64 = 1 << 14;
/// IEC, global.
const ENTRIES_GLOBAL: [u64; 2] = [4, 0];

fn config() -> ModelConfig {
    ModelConfig::nesting_server().with_interrupt_remapping()
}

/// IEC, index-selective.
fn entries_of(index: u64, mask: u64) -> [u64; 2] {
    [0x14 | mask << 27 | index << 32, 0]
}

/// The second quadword of an entry that only one source-id may use.
fn from_exactly(source_id: SourceId) -> u64 {
    u64::from(source_id.as_u16()) | 1 << 18
}

/// A bench with an interrupt table of 256 entries.
struct Interrupts {
    bench: Bench,
    table: u64,
}

impl Interrupts {
    /// The table is set, remapping is on.
    fn new(config: ModelConfig, extended: bool) -> Self {
        let this = Self::off(config);
        this.set_table(this.table | if extended { EIME } else { 0 } | 7);
        this.bench.command(IRE, true);
        this
    }

    fn off(config: ModelConfig) -> Self {
        let bench = Bench::new(config, Mode::Scalable);
        let table = bench.page();
        Self { bench, table }
    }

    fn unit(&self) -> ModelUnit {
        self.bench.machine.unit.clone()
    }

    fn write_table_address(&self, value: u64) {
        self.unit()
            .write64(Register64::INTERRUPT_REMAPPING_TABLE_ADDRESS, value);
    }

    /// Writes IRTA, sets it and drops what the cache has.
    fn set_table(&self, value: u64) {
        self.write_table_address(value);
        self.bench.command(SIRTP, true);
        assert!(self.bench.submit(&[ENTRIES_GLOBAL]));
    }

    /// An entry in one flushed store each, the present bit last.
    fn set_entry(&self, index: u64, entry: [u64; 2]) {
        self.bench.put(self.table + 16 * index + 8, entry[1]);
        self.bench.put(self.table + 16 * index, entry[0]);
    }

    fn send(&self, address: u32, data: u32) -> Result<(), u8> {
        self.send_from(DEVICE, address, data)
    }

    fn send_from(&self, source_id: SourceId, address: u32, data: u32) -> Result<(), u8> {
        let sent = self.unit().send_interrupt(source_id, address, data);
        sent.map_err(|fault| fault.reason.code())
    }

    /// Sends a request for an index; the vector that reaches processors, or the fault.
    fn vector(&self, index: u32) -> Result<u8, u8> {
        self.send(message_of(index), 0)?;
        Ok(self.interrupt().vector)
    }

    /// What the one request since the last call became.
    fn outcome(&self) -> InterruptOutcome {
        let sent = self.unit().take_interrupts();
        assert_eq!(sent.len(), 1, "{sent:#x?}");
        sent[0].outcome
    }

    fn interrupt(&self) -> ProcessorInterrupt {
        self.outcome().interrupt().expect("reaches a processor")
    }

    /// Fault information, reason and source-id of the first record, which is cleared; `None` if
    /// it holds no fault.
    fn take_record(&self) -> Option<(u64, u8, u16)> {
        let unit = self.unit();
        let pending = unit.read32(Register32::FAULT_STATUS);
        if pending & 2 == 0 {
            return None;
        }
        let index = (pending >> 8) as u8;
        let low = unit.read64(Register64::fault_record_low(0x220, index).unwrap());
        let high = unit.read64(Register64::fault_record_high(0x220, index).unwrap());
        assert_eq!(high >> 63, 1, "F");
        assert_eq!(high >> 31 & 1, 0, "PP");
        let clear = Register32::fault_record_dword3(0x220, index).unwrap();
        self.unit().write32(clear, 1 << 31);
        Some((low, (high >> 32) as u8, high as u16))
    }
}

/// The address of a remappable request without subhandle.
fn message_of(index: u32) -> u32 {
    0xfee0_0010 | (index & 0x7fff) << 5 | index >> 15 << 2
}

#[test]
fn without_remapping_requests_pass_as_compatibility_requests() {
    for config in [config(), ModelConfig::nesting_server()] {
        let interrupts = Interrupts::off(config);
        // The remappable format has no meaning yet.
        for (address, data) in [(0xfee1_2008, 0x0141), (0xfee0_0010, 0xffff_0041)] {
            assert_eq!(interrupts.send(address, data), Ok(()));
            assert!(matches!(interrupts.outcome(), InterruptOutcome::Passed(_)));
        }
        interrupts.unit().assert_no_violations();
    }
    let interrupts = Interrupts::off(config().with_extended(Ecap::INTERRUPT_REMAPPING_REQUIRED, 1));
    assert_eq!(interrupts.send(0xfee0_0000, 0x41), Err(0x2b));
    assert_eq!(interrupts.send(0xfee0_0010, 0), Err(0x2b));
    let (_, reason, source_id) = interrupts.take_record().expect("always recorded");
    assert_eq!((reason, source_id), (0x2b, DEVICE.as_u16()));
}

#[test]
fn only_single_dwords_without_pasid_are_interrupts() {
    let interrupts = Interrupts::new(config(), true);
    interrupts.set_entry(0, [P, 0]);
    let unit = interrupts.unit();
    let at = Iova::new(0xfee0_0010);
    let code = |result: Result<(), vtd_model::Fault>| result.map_err(|fault| fault.reason.code());
    assert_eq!(code(unit.dma_write(DEVICE, None, at, &[0; 4])), Ok(()));
    interrupts.outcome();
    for length in [1, 2, 3, 8, 16] {
        let sent = unit.dma_write(DEVICE, None, at, &vec![0; length]);
        assert_eq!(code(sent), Err(0x29), "{length} bytes");
    }
    let odd = Iova::new(0xfee0_0012);
    assert_eq!(code(unit.dma_write(DEVICE, None, odd, &[0; 4])), Err(0x29));
    assert_eq!(
        code(unit.dma_read(DEVICE, None, at, &mut [0; 4])),
        Err(0x29)
    );
    let added = unit.dma_fetch_add(DEVICE, None, at, 1).map(|_| ());
    assert_eq!(code(added), Err(0x29));
    assert_eq!(code(unit.dma_read(DEVICE, None, at, &mut [])), Ok(()));
    // With a PASID it is an address like any other: nothing is mapped.
    let sent = unit.dma_write(DEVICE, pasid(5), at, &[0; 4]);
    assert!(!matches!(code(sent), Ok(()) | Err(0x20..=0x2b)));
    assert!(unit.take_interrupts().is_empty());
    unit.assert_no_violations();
}

#[test]
fn the_compatibility_format_is_blocked_but_for_cfi_in_xapic_mode() {
    for (extended, compatibility, expected) in [
        (false, false, Err(0x25)),
        (false, true, Ok(())),
        (true, false, Err(0x25)),
        (true, true, Err(0x25)),
    ] {
        let interrupts = Interrupts::new(config(), extended);
        interrupts.bench.command(CFI, compatibility);
        let status = interrupts.unit().read32(Register32::GLOBAL_STATUS);
        assert_eq!(status & CFI != 0, compatibility);
        let name = format!("EIME {extended}, CFI {compatibility}");
        assert_eq!(interrupts.send(0xfee0_3000, 0x41), expected, "{name}");
        if expected.is_ok() {
            let interrupt = interrupts.interrupt();
            assert_eq!((interrupt.destination, interrupt.vector), (3, 0x41));
        } else {
            let (_, reason, source_id) = interrupts.take_record().expect("always recorded");
            assert_eq!((reason, source_id), (0x25, DEVICE.as_u16()));
        }
        // CFI does not change the other format.
        interrupts.set_entry(1, [P | 0x42 << 16, 0]);
        assert_eq!(interrupts.vector(1), Ok(0x42), "{name}");
        interrupts.unit().assert_no_violations();
    }
}

#[test]
fn handle_and_subhandle_make_the_index() {
    let interrupts = Interrupts::new(config(), true);
    for index in 0..256 {
        interrupts.set_entry(index, [P | index << 16, 0]);
    }
    for (address, data, expected) in [
        (0xfee0_0010, 0xffff_ffff, Ok(0)),
        (0xfee0_0013, 0, Ok(0)),
        (0xfee0_1ff0, 0, Ok(255)),
        (0xfee0_2010, 0, Err(0x21)),
        (0xfee0_0014, 0, Err(0x21)),
        (0xfee0_0018, 7, Ok(7)),
        (0xfee0_0038, 7, Ok(8)),
        (0xfee0_1ff8, 1, Err(0x21)),
        // The sum is not cut to 16 bits.
        (0xfeef_fffc, 1, Err(0x21)),
        (0xfee0_0018, 0x1_0000, Err(0x20)),
        (0xfeef_fffc, 0x8000_0000, Err(0x20)),
    ] {
        // Bits 1:0 are ignored, but an interrupt is aligned.
        let sent = interrupts.send(address & !3, data);
        let vector = sent.map(|()| interrupts.interrupt().vector);
        assert_eq!(vector, expected, "{address:#x} {data:#x}");
        // The record has the index; that of 20h is undefined.
        let record = interrupts.take_record();
        assert_eq!(record.map(|(_, code, _)| code), expected.err());
        if let Some((information, 0x21, _)) = record {
            let handle = u64::from(address >> 5 & 0x7fff | address >> 2 << 15 & 0x8000);
            let subhandle = if address & 8 == 0 { 0 } else { u64::from(data) };
            assert_eq!(information, (handle + subhandle) << 48);
        }
    }
    interrupts.unit().assert_no_violations();
}

#[test]
fn the_size_of_the_table_is_two_to_the_s_plus_one() {
    for size in [0, 1, 7, 15] {
        let interrupts = Interrupts::off(config());
        for _ in 0..256 {
            interrupts.bench.page();
        }
        let entries = 2u32 << size;
        interrupts.set_table(interrupts.table | EIME | size);
        interrupts.bench.command(IRE, true);
        interrupts.set_entry(u64::from(entries - 1), [P | 0x55 << 16, 0]);
        assert_eq!(interrupts.vector(entries - 1), Ok(0x55), "S {size}");
        if entries < 0x1_0000 {
            assert_eq!(interrupts.vector(entries), Err(0x21), "S {size}");
        } else {
            assert_eq!(interrupts.send(0xfee0_0038, 0xffff), Err(0x21));
        }
    }
}

#[test]
fn an_entry_makes_the_interrupt() {
    use DeliveryMode::*;
    // First quadword; destination, logical, hint, mode, level, vector.
    type Row = (u64, bool, (u32, bool, bool, DeliveryMode, bool, u8));
    let rows: &[Row] = &[
        (P, true, (0, false, false, Fixed, false, 0)),
        (
            0x8765_4321_00aa_0f1d,
            true,
            (0x8765_4321, true, true, Fixed, true, 0xaa),
        ),
        (
            0x0000_7f00_0031_0021,
            false,
            (0x7f, false, false, LowestPriority, false, 0x31),
        ),
        (
            0x0000_ff00_0031_0035,
            false,
            (0xff, true, false, LowestPriority, true, 0x31),
        ),
        // These are edge-triggered whatever TM says.
        (
            0x0000_0051,
            true,
            (0, false, false, SystemManagement, false, 0),
        ),
        (0x0002_0091, true, (0, false, false, NonMaskable, false, 2)),
        (0x0000_00b1, true, (0, false, false, Init, false, 0)),
        (0x0000_00f1, true, (0, false, false, External, false, 0)),
    ];
    for (entry, extended, expected) in rows {
        let interrupts = Interrupts::new(config(), *extended);
        interrupts.set_entry(3, [*entry, 0]);
        assert_eq!(interrupts.send(message_of(3), 0xffff_ffff), Ok(()));
        let (destination, is_logical, has_redirection_hint, delivery, is_level, vector) = *expected;
        let interrupt = ProcessorInterrupt {
            destination,
            is_logical,
            has_redirection_hint,
            delivery,
            is_level,
            vector,
        };
        let index = 3;
        assert_eq!(
            interrupts.outcome(),
            InterruptOutcome::Remapped { index, interrupt },
            "{entry:#x}"
        );
    }
}

#[test]
fn entries_are_checked_in_the_order_of_the_specification() {
    let foreign = from_exactly(OTHER);
    // Entry, EIME, posted interrupts known; the fault.
    type Row = (&'static str, [u64; 2], bool, bool, u8);
    let rows: &[Row] = &[
        ("not present", [0, 0], true, true, 0x22),
        (
            "not present counts first",
            [0xff00_0000, foreign],
            true,
            true,
            0x22,
        ),
        ("bits 14:12", [P | 1 << 12, 0], true, true, 0x24),
        ("bit 13", [P | 1 << 13, 0], true, true, 0x24),
        ("URG without IM", [P | URG, 0], true, true, 0x24),
        ("bit 24", [P | 1 << 24, 0], true, true, 0x24),
        ("bit 31", [P | 1 << 31, 0], true, true, 0x24),
        ("bit 84", [P, 1 << 20], true, true, 0x24),
        ("bit 127", [P, 1 << 63], true, true, 0x24),
        ("delivery mode 3", [P | 3 << 5, 0], true, true, 0x24),
        ("delivery mode 6", [P | 6 << 5, 0], true, true, 0x24),
        ("xAPIC, id bits 7:0", [P | 1 << 32, 0], false, true, 0x24),
        ("xAPIC, id bits 31:16", [P | 1 << 48, 0], false, true, 0x24),
        ("source-id", [P, foreign], true, true, 0x26),
        (
            "source-id before format",
            [P | 1 << 12, foreign],
            true,
            true,
            0x26,
        ),
        ("SVT 3", [P, 3 << 18], true, true, 0x26),
        ("SVT 2, bus above", [P, 0x0105 | 2 << 18], true, true, 0x26),
        ("IM without PI", [P | IM, 0], true, false, 0x24),
        ("posted, bit 2", [P | IM | 4, 0], true, true, 0x24),
        ("posted, bit 7", [P | IM | 1 << 7, 0], true, true, 0x24),
        ("posted, bit 12", [P | IM | 1 << 12, 0], true, true, 0x24),
        ("posted, bit 24", [P | IM | 1 << 24, 0], true, true, 0x24),
        ("posted, bit 37", [P | IM | 1 << 37, 0], true, true, 0x24),
        ("posted, bit 84", [P | IM, 1 << 20], true, true, 0x24),
        ("posted, bit 95", [P | IM, 1 << 31], true, true, 0x24),
        ("posted, beyond HAW", [P | IM, 1 << 46], true, true, 0x24),
        ("posted, source-id", [P | IM, foreign], true, true, 0x26),
        (
            "posted, no memory",
            [P | IM, 0x2000 << 32],
            true,
            true,
            0x27,
        ),
    ];
    for (name, entry, extended, posts, code) in rows {
        let config = config().with_capability(Cap::POSTED_INTERRUPTS, u64::from(*posts));
        let interrupts = Interrupts::new(config, *extended);
        interrupts.set_entry(9, *entry);
        assert_eq!(interrupts.vector(9), Err(*code), "{name}");
        let record = interrupts.take_record();
        assert_eq!(record, Some((9 << 48, *code, DEVICE.as_u16())), "{name}");
        // FPD of the entry silences all of these.
        interrupts.set_entry(9, [entry[0] | FPD, entry[1]]);
        assert_eq!(interrupts.vector(9), Err(*code), "{name}");
        assert_eq!(interrupts.take_record(), None, "{name}, FPD");
        interrupts.unit().assert_no_violations();
    }
}

#[test]
fn a_table_that_cannot_be_read_has_its_own_reasons() {
    let interrupts = Interrupts::new(config(), true);
    let memory = &interrupts.bench.machine.memory;
    memory.poison(Hpa::new(interrupts.table + 16 * 4), 16);
    interrupts.set_entry(3, [P | 0x33 << 16, 0]);
    interrupts.set_entry(4, [P | FPD, 0]);
    assert_eq!(interrupts.vector(3), Ok(0x33));
    assert_eq!(interrupts.vector(4), Err(0x23));
    let record = interrupts.take_record();
    assert_eq!(record, Some((4 << 48, 0x23, DEVICE.as_u16())), "always");
    interrupts.unit().assert_no_violations();
    // The last page below HAW holds 256 entries; the table goes on above.
    let interrupts = Interrupts::off(config());
    interrupts.set_table(0x3fff_ffff_f000 | EIME | 8);
    interrupts.bench.command(IRE, true);
    assert_eq!(interrupts.vector(255), Err(0x23), "no memory there");
    assert_eq!(interrupts.vector(256), Err(0x21), "beyond HAW");
    interrupts.unit().assert_no_violations();
    let interrupts = Interrupts::off(config());
    interrupts.set_table(1 << 46 | EIME | 8);
    interrupts.bench.command(IRE, true);
    assert_eq!(interrupts.vector(0), Err(0x21));
    let reserved = Violation::ReservedRegisterBits {
        offset: 0xbc,
        bits: 1 << 14,
    };
    assert_eq!(interrupts.unit().violations(), [reserved]);
}

#[test]
fn requests_are_taken_from_the_sources_that_an_entry_names() {
    let interrupts = Interrupts::new(config(), true);
    let source = SourceId::from_u16;
    // Second quadword of the entry; the source-id; whether it passes.
    for (index, (validation, source_id, passes)) in [
        (from_exactly(DEVICE), DEVICE, true),
        (from_exactly(DEVICE), source(0x11), false),
        (0x10 | 1 << 16 | 1 << 18, source(0x14), true),
        (0x10 | 1 << 16 | 1 << 18, source(0x12), false),
        (0x10 | 2 << 16 | 1 << 18, source(0x16), true),
        (0x10 | 2 << 16 | 1 << 18, source(0x11), false),
        (0x10 | 3 << 16 | 1 << 18, source(0x17), true),
        (0x10 | 3 << 16 | 1 << 18, source(0x18), false),
        (0x0204 | 2 << 18, source(0x0200), true),
        (0x0204 | 2 << 18, source(0x04ff), true),
        (0x0204 | 2 << 18, source(0x01ff), false),
        (0x0204 | 2 << 18, source(0x0500), false),
        (0xffff | 3 << 16, OTHER, true),
    ]
    .into_iter()
    .enumerate()
    {
        interrupts.set_entry(index as u64, [P, validation]);
        let expected = if passes { Ok(()) } else { Err(0x26) };
        let sent = interrupts.send_from(source_id, message_of(index as u32), 0);
        assert_eq!(sent, expected, "{validation:#x} {source_id:?}");
        if passes {
            // A cached entry is no pass for others.
            assert_eq!(interrupts.outcome().interrupt().unwrap().vector, 0);
            let denied = interrupts.send_from(source(0xfff8), message_of(index as u32), 0);
            let expected = if validation >> 18 == 0 {
                Ok(())
            } else {
                Err(0x26)
            };
            assert_eq!(denied, expected, "{validation:#x}, cached");
            interrupts.unit().take_interrupts();
        }
    }
    interrupts.unit().assert_no_violations();
}

// ---- posting ----

/// An entry that posts `vector` to a descriptor.
fn posting(descriptor: u64, vector: u64, bits: u64) -> [u64; 2] {
    [
        P | IM | vector << 16 | (descriptor & 0xffff_ffc0) << 32 | bits,
        descriptor & 0xffff_ffff_0000_0000,
    ]
}

#[test]
fn posting_sets_the_vector_and_notifies_once() {
    const ON: u64 = 1;
    const SN: u64 = 2;
    const NOTIFICATION: u64 = 0xf2 << 16 | 0x0102_0304 << 32;
    // Bits of the entry, control word before; control word after, whether it notifies.
    for (bits, before, after, notifies) in [
        (0, NOTIFICATION, NOTIFICATION | ON, true),
        (0, NOTIFICATION | ON, NOTIFICATION | ON, false),
        (0, NOTIFICATION | SN, NOTIFICATION | SN, false),
        (0, NOTIFICATION | SN | ON, NOTIFICATION | SN | ON, false),
        (URG, NOTIFICATION | SN, NOTIFICATION | SN | ON, true),
        (URG, NOTIFICATION | SN | ON, NOTIFICATION | SN | ON, false),
        (URG, NOTIFICATION | ON, NOTIFICATION | ON, false),
    ] {
        // Interrupt tables are not snooped here; descriptors always are.
        let interrupts = Interrupts::new(config().with_extended(Ecap::COHERENCY, 0), true);
        let bench = &interrupts.bench;
        let page = bench.page();
        let descriptor = page + 0x40;
        bench
            .machine
            .memory
            .write64(Hpa::new(descriptor + 32), before);
        for (index, vector) in [(0u32, 0x00), (1, 0x3f), (2, 0x40), (3, 0xff)] {
            interrupts.set_entry(index.into(), posting(descriptor, vector, bits));
            assert_eq!(interrupts.send(message_of(index), 0), Ok(()));
            let InterruptOutcome::Posted {
                index: used,
                vector: posted,
                descriptor: at,
                notification,
            } = interrupts.outcome()
            else {
                panic!("posted");
            };
            assert_eq!((u32::from(used), u64::from(posted)), (index, vector));
            assert_eq!(at.as_u64(), descriptor);
            // The first post left ON set.
            let expected = (notifies && index == 0).then_some(ProcessorInterrupt {
                destination: 0x0102_0304,
                is_logical: false,
                has_redirection_hint: false,
                delivery: DeliveryMode::Fixed,
                is_level: false,
                vector: 0xf2,
            });
            assert_eq!(notification, expected);
        }
        let words: Vec<u64> = (0..8).map(|n| bench.get(descriptor + 8 * n)).collect();
        assert_eq!(words, [1 << 63 | 1, 1, 0, 1 << 63, after, 0, 0, 0]);
        assert_eq!((bench.get(page), bench.get(page + 0x80)), (0, 0));
        interrupts.unit().assert_no_violations();
    }
}

#[test]
fn descriptors_of_posted_interrupts_are_checked_before_they_change() {
    // EIME, word, its value; whether it is reserved.
    for (extended, word, value, is_reserved) in [
        (true, 4, 1 << 2, true),
        (true, 4, 1 << 15, true),
        (true, 4, 1 << 24, true),
        (true, 4, 1 << 31, true),
        (true, 5, 1, true),
        (true, 7, 1 << 63, true),
        (true, 4, 0xffff_ffff_0000_0000, false),
        (false, 4, 1 << 32, true),
        (false, 4, 1 << 48, true),
        (false, 4, 0xff << 40, false),
        (true, 0, u64::MAX, false),
    ] {
        let interrupts = Interrupts::new(config(), extended);
        let descriptor = interrupts.bench.page();
        interrupts.bench.put(descriptor + 8 * word, value);
        interrupts.set_entry(0, posting(descriptor, 0x41, 0));
        let sent = interrupts.send(message_of(0), 0);
        let name = format!("EIME {extended}, word {word} {value:#x}");
        if is_reserved {
            assert_eq!(sent, Err(0x28), "{name}");
            let words = [0, 1, 4].map(|n| interrupts.bench.get(descriptor + 8 * n));
            let unchanged = [0, 1, 4].map(|n| if n == word { value } else { 0 });
            assert_eq!(words, unchanged, "{name}");
        } else {
            assert_eq!(sent, Ok(()), "{name}");
            let expected = match (word, extended) {
                (4, true) => 0xffff_ffff,
                (4, false) => 0xff,
                _ => 0,
            };
            assert_eq!(interrupts.interrupt().destination, expected, "{name}");
        }
    }
    let interrupts = Interrupts::new(config(), true);
    let descriptor = interrupts.bench.page();
    interrupts
        .bench
        .machine
        .memory
        .poison(Hpa::new(descriptor), 64);
    interrupts.set_entry(0, posting(descriptor, 0x41, 0));
    assert_eq!(interrupts.send(message_of(0), 0), Err(0x27));
}

// ---- the interrupt-entry cache ----

#[test]
fn entries_are_kept_until_an_invalidation_covers_them() {
    let interrupts = Interrupts::new(config(), true);
    let set_all = |vector: u64| {
        for index in 0..32 {
            interrupts.set_entry(index, [P | vector << 16, 0]);
        }
    };
    // Which of the 32 indexes an invalidation reaches.
    for (descriptor, reached) in [
        (ENTRIES_GLOBAL, 0..32),
        (entries_of(7, 0), 7..8),
        (entries_of(7, 1), 6..8),
        (entries_of(8, 3), 8..16),
        (entries_of(9, 3), 8..16),
        (entries_of(0x7fff, 15), 0..32),
        (entries_of(0x8000, 15), 0..0),
        (IOTLB_GLOBAL, 0..0),
        (CONTEXT_GLOBAL, 0..0),
    ] {
        set_all(0x20);
        assert!(interrupts.bench.submit(&[ENTRIES_GLOBAL]));
        for index in 0..32 {
            assert_eq!(interrupts.vector(index), Ok(0x20));
        }
        set_all(0x30);
        assert!(interrupts.bench.submit(&[descriptor]));
        for index in 0..32 {
            let expected = if reached.contains(&index) { 0x30 } else { 0x20 };
            assert_eq!(
                interrupts.vector(index),
                Ok(expected),
                "{descriptor:#x?} {index}"
            );
        }
    }
    // Taken away, and still there for hardware.
    interrupts.set_entry(0, [0, 0]);
    assert_eq!(interrupts.vector(0), Ok(0x20));
    assert!(interrupts.bench.submit(&[entries_of(0, 0)]));
    assert_eq!(interrupts.vector(0), Err(0x22));
    interrupts.unit().evict_all();
    assert_eq!(interrupts.vector(1), Ok(0x30), "evicted");
    interrupts.unit().assert_no_violations();
}

#[test]
fn the_cache_is_as_large_as_its_mode() {
    for (mode, hits) in [
        (CacheMode::Hoarder, 20),
        (CacheMode::Tiny, 4),
        (CacheMode::None, 0),
    ] {
        let interrupts = Interrupts::new(config().with_cache_mode(mode), true);
        for index in 0..20 {
            interrupts.set_entry(index, [P | 1 << 16, 0]);
            assert_eq!(interrupts.vector(index as u32), Ok(1));
        }
        for index in 0..20 {
            interrupts.set_entry(index, [P | 2 << 16, 0]);
        }
        let before = interrupts.unit().counters().interrupt_entry_hits;
        let stale = (0..20)
            .filter(|&index| interrupts.vector(index) == Ok(1))
            .count();
        let seen = interrupts.unit().counters().interrupt_entry_hits - before;
        assert_eq!(stale as u64, seen, "{mode:?}");
        assert!(seen <= hits, "{mode:?}: {seen}");
        assert!(mode != CacheMode::Hoarder || seen == 20);
    }
}

#[test]
fn faulting_entries_are_cached_in_caching_mode_only() {
    let descriptor_page = 0x20_0000;
    let rows: &[(&str, [u64; 2], u8)] = &[
        ("not present", [0, 0], 0x22),
        ("reserved", [P | 1 << 12, 0], 0x24),
        ("source-id", [P, from_exactly(OTHER)], 0x26),
        ("descriptor", posting(descriptor_page, 1, 0), 0x28),
    ];
    for caching in [false, true] {
        let config = config().with_capability(Cap::CACHING_MODE, u64::from(caching));
        let interrupts = Interrupts::new(config, true);
        interrupts.bench.put(descriptor_page + 40, 1);
        for (name, entry, code) in rows {
            interrupts.set_entry(2, *entry);
            assert!(interrupts.bench.submit(&[entries_of(2, 0)]));
            assert_eq!(interrupts.vector(2), Err(*code), "{name}");
            interrupts.set_entry(2, [P | 0x44 << 16, 0]);
            let expected = if caching { Err(*code) } else { Ok(0x44) };
            assert_eq!(interrupts.vector(2), expected, "{name}, CM {caching}");
            assert!(interrupts.bench.submit(&[entries_of(2, 0)]));
            assert_eq!(interrupts.vector(2), Ok(0x44), "{name}");
        }
        interrupts.unit().assert_no_violations();
    }
}

#[test]
fn entries_are_snooped_or_seen_only_when_flushed() {
    for (coherent, expected) in [(1, Ok(0x41)), (0, Err(0x22))] {
        let config = config().with_extended(Ecap::COHERENCY, coherent);
        let interrupts = Interrupts::new(config, true);
        let memory = &interrupts.bench.machine.memory;
        let at = Hpa::new(interrupts.table + 16 * 5);
        memory.write64(at, P | 0x41 << 16);
        assert_eq!(interrupts.vector(5), expected, "C {coherent}");
        memory.flush_line(at);
        memory.fence();
        assert_eq!(interrupts.vector(5), Ok(0x41));
    }
}

#[test]
fn an_entry_is_read_in_one_piece() {
    let interrupts = Interrupts::new(config(), true);
    let at = interrupts.table;
    let bench = &interrupts.bench;
    interrupts.set_entry(0, [P | 1 << 16, from_exactly(OTHER)]);
    // The whole entry changes in one store right before the read.
    bench.machine.memory.set_fetch_hook(move |memory, fetch| {
        if fetch.address.as_u64() == at {
            assert_eq!(fetch.len_bytes, 16);
            let entry = u128::from(from_exactly(DEVICE)) << 64 | u128::from(P | 2 << 16);
            memory.write128(fetch.address, entry);
        }
    });
    assert_eq!(interrupts.vector(0), Ok(2));
}

// ---- commands ----

#[test]
fn a_table_takes_effect_with_its_command() {
    let interrupts = Interrupts::off(config());
    let unit = interrupts.unit();
    let status = || interrupts.unit().read32(Register32::GLOBAL_STATUS) & (IRE | SIRTP | CFI);
    interrupts.set_entry(1, [P | 0x41 << 16, 0]);
    interrupts.set_table(interrupts.table | EIME | 7);
    interrupts.bench.command(IRE, true);
    assert_eq!(status(), IRE | SIRTP);
    assert_eq!(interrupts.vector(1), Ok(0x41));
    // Written, but not set: nothing changes. The new table does for requests what the old does.
    let other = interrupts.bench.page();
    interrupts.bench.put(other + 16, P | 0x41 << 16 | 0xf00);
    interrupts.bench.put(other + 32, P | 0x42 << 16);
    interrupts.write_table_address(other | EIME | 7);
    assert_eq!(interrupts.vector(2), Err(0x22));
    unit.set_command_pace(Pace::Manual);
    interrupts.bench.command(SIRTP, true);
    assert_eq!(status(), IRE, "IRTPS is cleared when the command arrives");
    assert_eq!(interrupts.vector(2), Err(0x22));
    // The address counts as it was when the command arrived.
    interrupts.write_table_address(EIME | 7);
    unit.run();
    assert_eq!(status(), IRE | SIRTP);
    assert_eq!(interrupts.vector(2), Ok(0x42));
    unit.assert_no_violations();
    // Off: requests pass again.
    interrupts.bench.command(IRE, false);
    unit.run();
    assert_eq!(status(), SIRTP);
    assert_eq!(interrupts.send(0xfee0_0000, 0x55), Ok(()));
    assert!(matches!(interrupts.outcome(), InterruptOutcome::Passed(_)));
    // To enable it again, the table must be set again.
    interrupts.bench.command(IRE, true);
    unit.run();
    assert_eq!(
        unit.take_violations(),
        [Violation::InterruptRemappingWithoutTable]
    );
}

#[test]
fn only_esirtps_empties_the_cache_by_itself() {
    for enhanced in [false, true] {
        let config = config().with_capability(
            Cap::ENHANCED_SET_INTERRUPT_TABLE_POINTER,
            u64::from(enhanced),
        );
        let interrupts = Interrupts::new(config, true);
        let unit = interrupts.unit();
        let bench = &interrupts.bench;
        let fill = |vector: u64| {
            interrupts.set_entry(1, [P | vector << 16, 0]);
            assert!(bench.submit(&[ENTRIES_GLOBAL]));
            assert_eq!(interrupts.vector(1), Ok(vector as u8));
        };
        let kept = |new: u8| Ok(if enhanced { new } else { 0x41 });
        // SIRTP while it is on.
        fill(0x41);
        interrupts.set_entry(1, [P | 0x42 << 16, 0]);
        bench.command(SIRTP, true);
        assert_eq!(interrupts.vector(1), kept(0x42), "SIRTP");
        // IRE 1→0→1.
        fill(0x41);
        interrupts.set_entry(1, [P | 0x43 << 16, 0]);
        bench.command(IRE, false);
        bench.command(SIRTP, true);
        unit.assert_no_violations();
        bench.command(IRE, true);
        assert_eq!(interrupts.vector(1), kept(0x43), "IRE");
        let violations: &[Violation] = if enhanced {
            &[]
        } else {
            &[Violation::InterruptEntryCacheNotInvalidated]
        };
        assert_eq!(unit.take_violations(), violations);
        // Turned off without a new table.
        fill(0x41);
        interrupts.set_entry(1, [P | 0x44 << 16, 0]);
        bench.command(IRE, false);
        bench.command(IRE, true);
        assert_eq!(interrupts.vector(1), kept(0x44), "IRE alone");
        assert_eq!(
            unit.take_violations(),
            [Violation::InterruptRemappingWithoutTable]
        );
        // An index-selective invalidation is no global one.
        bench.command(IRE, false);
        bench.command(SIRTP, true);
        assert!(bench.submit(&[entries_of(0, 8)]));
        bench.command(IRE, true);
        assert_eq!(unit.take_violations(), violations);
    }
}

#[test]
fn misuse_of_the_commands_is_reported() {
    let interrupts = Interrupts::new(config(), true);
    let unit = interrupts.unit();
    interrupts.set_entry(6, [P | 0x41 << 16, 0]);
    // Another extended mode while it is on: the write, then the command.
    interrupts.write_table_address(interrupts.table | 7);
    let changed = Violation::ExtendedInterruptModeChangedWhileEnabled;
    assert_eq!(unit.take_violations(), [changed]);
    interrupts.bench.command(SIRTP, true);
    assert_eq!(unit.take_violations(), [changed]);
    // A table that lacks an entry, has another, or is too small.
    let other = interrupts.bench.page();
    let differs = Violation::InterruptTableDiffers { index: 6 };
    for (entry, size, expected) in [
        (0, 7, Some(differs)),
        (P | 0x42 << 16, 7, Some(differs)),
        (P | 0x41 << 16, 1, Some(differs)),
        (P | 0x41 << 16, 2, None),
    ] {
        interrupts.bench.put(other + 16 * 6, entry);
        interrupts.write_table_address(interrupts.table | 7);
        interrupts.bench.command(IRE, false);
        interrupts.bench.command(SIRTP, true);
        interrupts.bench.command(IRE, true);
        interrupts.write_table_address(other | size);
        interrupts.bench.command(SIRTP, true);
        assert_eq!(
            unit.take_violations(),
            Vec::from_iter(expected),
            "{entry:#x}"
        );
    }
    // Where EIME is required.
    let required = config().with_extended(Ecap::EXTENDED_INTERRUPT_MODE_REQUIRED, 1);
    for (extended, violations, sent) in [
        (
            false,
            vec![Violation::ExtendedInterruptModeRequired],
            Err(0x2a),
        ),
        (true, vec![], Ok(())),
    ] {
        let interrupts = Interrupts::new(required.clone(), extended);
        interrupts.set_entry(0, [P, 0]);
        interrupts.bench.command(CFI, true);
        assert_eq!(interrupts.send(message_of(0), 0), sent);
        let compatible = interrupts.send(0xfee0_0000, 0);
        assert_eq!(compatible, Err(if extended { 0x25 } else { 0x2a }));
        assert_eq!(interrupts.unit().violations(), violations);
    }
}

#[test]
fn bits_of_absent_features_are_reserved_and_read_0() {
    let reserved = |bits| Violation::ReservedRegisterBits { offset: 0xb8, bits };
    let value = 0x5000 | EIME | 7;
    for (config, stored, violations) in [
        (config(), value, vec![]),
        (
            config().with_extended(Ecap::EXTENDED_INTERRUPT_MODE, 0),
            0x5007,
            vec![reserved(1 << 11)],
        ),
        (ModelConfig::nesting_server(), 0, vec![reserved(0x5807)]),
    ] {
        let interrupts = Interrupts::off(config);
        interrupts.write_table_address(value);
        let unit = interrupts.unit();
        let read = unit.read64(Register64::INTERRUPT_REMAPPING_TABLE_ADDRESS);
        assert_eq!((read, unit.violations()), (stored, violations));
    }
}

#[test]
fn invalidations_with_too_large_a_mask_stop_the_queue() {
    for (most, mask, code) in [(0, 0, 0), (0, 1, 4), (4, 4, 0), (4, 5, 4), (15, 16, 4)] {
        let config = config().with_extended(Ecap::MAXIMUM_HANDLE_MASK, most);
        let bench = Bench::new(config, Mode::Scalable);
        let done = bench.submit(&[entries_of(0, mask)]);
        let unit = &bench.machine.unit;
        let record = unit.read64(Register64::INVALIDATION_QUEUE_ERROR_RECORD);
        assert_eq!(
            (done, record & 0xf),
            (code == 0, code),
            "MHMV {most} IM {mask}"
        );
    }
    // IM counts for index-selective invalidations only.
    let bench = Bench::new(
        config().with_extended(Ecap::MAXIMUM_HANDLE_MASK, 0),
        Mode::Scalable,
    );
    assert!(bench.submit(&[[4 | 9 << 27, 0]]));
}

#[test]
fn an_invalidation_works_when_its_wait_is_over() {
    let interrupts = Interrupts::new(config(), true);
    interrupts.set_entry(0, [P | 1 << 16, 0]);
    assert_eq!(interrupts.vector(0), Ok(1));
    interrupts.unit().set_queue_pace(Pace::Manual);
    interrupts.set_entry(0, [P | 2 << 16, 0]);
    assert!(!interrupts.bench.submit(&[entries_of(0, 0)]));
    assert_eq!(interrupts.vector(0), Ok(1));
    interrupts.unit().run();
    assert_eq!(interrupts.vector(0), Ok(2));
    interrupts.unit().assert_no_violations();
}

#[test]
fn the_event_of_an_interrupt_fault_is_the_fault_event() {
    let interrupts = Interrupts::new(config(), true);
    let mut unit = interrupts.unit();
    unit.write32(Register32::FAULT_EVENT_DATA, 0x30);
    unit.write32(Register32::FAULT_EVENT_ADDRESS, 0xfee0_1000);
    unit.write32(Register32::FAULT_EVENT_CONTROL, 0);
    // The unit's own messages are not remapped.
    assert_eq!(interrupts.vector(0), Err(0x22));
    let messages = unit.take_messages();
    assert_eq!(messages.len(), 1);
    assert_eq!(
        (messages[0].kind, messages[0].address, messages[0].data),
        (EventKind::Fault, 0xfee0_1000, 0x30)
    );
    assert!(unit.take_interrupts().is_empty());
    assert_eq!(unit.counters().faults, 1);
    unit.assert_no_violations();
}
