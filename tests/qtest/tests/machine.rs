//! The bench itself: the emulator is what its notes say, and a machine keeps its promises.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::register::{FaultStatus, GlobalCommand, Register32, Register64};
use vtd_nest::mem::{Frames, HostMemory, Owner, Platform, Registers};
use vtd_qtest::{Machine, Options, Qemu, StartError, Version};

/// The version that the expected values were measured on.
const MEASURED: Version = Version {
    major: 10,
    minor: 0,
};

/// The emulator, or the reason why a test is skipped.
fn qemu() -> Option<Qemu> {
    Qemu::find()
        .inspect_err(|reason| println!("skipped: {reason}"))
        .ok()
}

fn start(options: &Options) -> Machine {
    Machine::new(options).unwrap_or_else(|error| panic!("{options:?}: {error}"))
}

#[test]
fn capabilities_are_those_that_were_measured() {
    let Some(qemu) = qemu() else { return };
    if qemu.version() != MEASURED {
        println!("skipped: measured on {MEASURED}, not on {}", qemu.version());
        return;
    }
    let legacy = Options::legacy(&qemu);
    let second_stage = Options::second_stage(&qemu);
    let first_stage = Options::first_stage(&qemu).unwrap();
    for (options, capability, extended) in [
        (legacy.clone(), 0x00d2_008c_222f_0606, 0x00f0_0f4a),
        (
            legacy.clone().with("caching-mode=on"),
            0x00d2_008c_222f_0686,
            0x00f0_0f4a,
        ),
        (
            legacy.clone().with("aw-bits=39"),
            0x00d2_008c_2226_0206,
            0x00f0_0f4a,
        ),
        (
            legacy.clone().with("device-iotlb=on"),
            0x00d2_008c_222f_0606,
            0x00f0_0f4e,
        ),
        (legacy.with("pt=off"), 0x00d2_008c_222f_0606, 0x00f0_0f0a),
        (
            second_stage.clone(),
            0x00d2_008c_222f_0606,
            0x4800_80f0_0f4a,
        ),
        (
            second_stage.clone().with("caching-mode=on"),
            0x00d2_008c_222f_0686,
            0x4800_80f0_0f4a,
        ),
        (
            second_stage.with("aw-bits=39"),
            0x00d2_008c_2226_0206,
            0x4800_80f0_0f4a,
        ),
        (first_stage.clone(), 0x01d2_008c_222f_0606, 0x8800_00f0_0f4a),
        (
            first_stage.with("fs1gp=off"),
            0x00d2_008c_222f_0606,
            0x8800_00f0_0f4a,
        ),
    ] {
        let machine = start(&options);
        let registers = machine.registers();
        assert_eq!(registers.read32(Register32::VERSION), 0x10, "{options:?}");
        assert_eq!(
            registers.read64(Register64::CAPABILITY),
            capability,
            "{options:?}"
        );
        assert_eq!(
            registers.read64(Register64::EXTENDED_CAPABILITY),
            extended,
            "{options:?}"
        );
    }
}

#[test]
fn dma_without_translation_moves_data_both_ways() {
    let Some(qemu) = qemu() else { return };
    let machine = start(&Options::second_stage(&qemu));
    let h = machine.hypervisor();
    let guests = machine.ram().guests.start;
    for (index, offset, len) in [
        (0, 0, 8),
        (1, 0x10_000, 4096),
        (0, 0x20_003, 1),
        (1, 0x3_0ffb, 13),
        (0, 0x4_0010, 10_000),
    ] {
        let edu = machine.edu(index);
        let at = guests.checked_add(offset).unwrap();
        let sent: Vec<u8> = (0..len).map(|byte| (byte * 7 + 1) as u8).collect();
        edu.dma_write(Iova::new(at.as_u64()), &sent);
        let mut stored = vec![0; len];
        h.copy_from(at, &mut stored);
        assert_eq!(stored, sent, "{len} bytes to {at:?}");
        let answer: Vec<u8> = sent.iter().map(|byte| !byte).collect();
        h.copy_to(at, &answer);
        let mut received = vec![0; len];
        edu.dma_read(Iova::new(at.as_u64()), &mut received);
        assert_eq!(received, answer, "{len} bytes from {at:?}");
    }
    assert_eq!(machine.edu(0).source_id().to_string(), "00:02.0");
    assert_eq!(machine.edu(1).source_id().to_string(), "00:11.0");
}

#[test]
fn a_device_that_is_not_bus_master_does_no_dma() {
    let Some(qemu) = qemu() else { return };
    let machine = start(&Options::second_stage(&qemu));
    let (h, edu) = (machine.hypervisor(), machine.edu(1));
    let at = machine.ram().guests.start;
    for (enabled, expected) in [(false, 0), (true, 0x0101_0101_0101_0101)] {
        h.set_bus_master(edu.source_id(), enabled);
        assert_eq!(machine.pci().is_bus_master(edu.source_id()), enabled);
        edu.dma_write(Iova::new(at.as_u64()), &[1; 8]);
        assert_eq!(h.read64(at), expected, "bus master: {enabled}");
    }
    let changes = h.take_bus_master_changes();
    assert_eq!(changes.len(), 2);
    assert!(h.take_bus_master_changes().is_empty());
}

/// Turns translation on with a root table in which nothing is present.
fn block_everything(machine: &Machine) {
    let mut registers = machine.registers();
    let root = machine.hypervisor().allocate(Owner::HYPERVISOR, 0).unwrap();
    registers.write64(Register64::ROOT_TABLE_ADDRESS, root.address().as_u64());
    for command in [
        GlobalCommand::SET_ROOT_TABLE_POINTER,
        GlobalCommand::TRANSLATION_ENABLE,
    ] {
        registers.write32(Register32::GLOBAL_COMMAND, command.bits());
        let status = registers.read32(Register32::GLOBAL_STATUS);
        assert_ne!(status & command.bits(), 0, "{command:?}");
    }
}

#[test]
fn a_blocked_dma_changes_nothing_and_is_recorded() {
    let Some(qemu) = qemu() else { return };
    let machine = start(&Options::second_stage(&qemu));
    block_everything(&machine);
    let (h, edu) = (machine.hypervisor(), machine.edu(0));
    let at = machine.ram().guests.start;
    h.write64(at, 7);
    edu.dma_write(Iova::new(at.as_u64()), &[1; 8]);
    assert_eq!(h.read64(at), 7);
    let mut received = [1; 8];
    edu.dma_read(Iova::new(at.as_u64()), &mut received);
    assert_eq!(received, [0; 8]);
    let status = machine.registers().read32(Register32::FAULT_STATUS);
    let pending = FaultStatus::PRIMARY_PENDING_FAULT.bits();
    assert_ne!(status & pending, 0, "{status:#x}");
}

#[test]
fn a_reset_gives_a_machine_as_new() {
    let Some(qemu) = qemu() else { return };
    let mut machine = start(&Options::second_stage(&qemu));
    let at = machine.ram().guests.start;
    for round in 0..3 {
        let (h, edu) = (machine.hypervisor(), machine.edu(0));
        let registers = machine.registers();
        assert_eq!(
            registers.read32(Register32::GLOBAL_STATUS),
            0,
            "round {round}"
        );
        assert_eq!(
            registers.read32(Register32::FAULT_STATUS),
            0,
            "round {round}"
        );
        assert_eq!(registers.read64(Register64::ROOT_TABLE_ADDRESS), 0);
        assert_eq!(h.read64(at), 0, "round {round}");
        assert_eq!(h.pool().free_frames(), h.pool().capacity());
        edu.dma_write(Iova::new(at.as_u64()), &[1; 8]);
        assert_eq!(h.read64(at), 0x0101_0101_0101_0101, "round {round}");
        block_everything(&machine);
        machine.edu(1).dma_write(Iova::new(at.as_u64()), &[2; 8]);
        machine.reset();
    }
}

#[test]
fn memory_is_as_long_as_asked_for_and_its_parts_do_not_overlap() {
    let Some(qemu) = qemu() else { return };
    for (ram_bytes, fits) in [
        (64 << 20, true),
        (2 << 30, true),
        (63 << 20, false),
        ((64 << 20) + 4096, false),
        (3 << 30, false),
    ] {
        let options = Options {
            ram_bytes,
            ..Options::second_stage(&qemu)
        };
        let result = Machine::new(&options);
        assert_eq!(result.is_ok(), fits, "{ram_bytes:#x}");
        let Ok(machine) = result else {
            continue;
        };
        let ram = machine.ram();
        let frames_end = ram.frames.start.as_u64() + ram.frames.len_bytes;
        let guests_end = ram.guests.start.as_u64() + ram.guests.len_bytes;
        assert!(frames_end <= ram.guests.start.as_u64());
        assert_eq!((guests_end, ram.total_bytes), (ram_bytes, ram_bytes));
        let pool = machine.hypervisor().pool();
        assert_eq!(u64::from(pool.capacity()), ram.frames.len_bytes >> 12);
        // The last quadword is the machine's too.
        let last = Hpa::new(guests_end - 8);
        let edu = machine.edu(0);
        edu.dma_write(Iova::new(last.as_u64()), &[3; 8]);
        assert_eq!(machine.hypervisor().read64(last), 0x0303_0303_0303_0303);
    }
}

#[test]
fn refused_options_are_told_in_the_emulators_words() {
    let Some(qemu) = qemu() else { return };
    for (options, expected) in [
        (Options::second_stage(&qemu).with("aw-bits=57"), "aw-bits"),
        (
            Options::legacy(&qemu).with("no-such-option=on"),
            "no-such-option",
        ),
    ] {
        let error = Machine::new(&options).err().unwrap();
        assert!(matches!(&error, StartError::Emulator(_)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let absent = Options {
        qemu: PathBuf::from("/nowhere/qemu"),
        ..Options::legacy(&qemu)
    };
    let error = Machine::new(&absent).err().unwrap();
    assert!(matches!(error, StartError::System(_)), "{error}");
}

#[test]
fn an_emulator_that_ends_is_told_and_nothing_is_left_of_it() {
    let Some(qemu) = qemu() else { return };
    let machine = start(&Options::second_stage(&qemu));
    let process = PathBuf::from(format!("/proc/{}", machine.process_id()));
    assert!(process.is_dir());
    let (h, edu) = (machine.hypervisor(), machine.edu(0));
    let mut registers = machine.registers();
    // An invalidation wait that writes a status and raises an interrupt ends this emulator.
    let queue = h.allocate(Owner::HYPERVISOR, 0).unwrap();
    h.write64(queue.address(), 0x35);
    registers.write64(
        Register64::INVALIDATION_QUEUE_ADDRESS,
        queue.address().as_u64(),
    );
    let enable = GlobalCommand::QUEUED_INVALIDATION_ENABLE.bits();
    registers.write32(Register32::GLOBAL_COMMAND, enable);
    let result = catch_unwind(AssertUnwindSafe(|| {
        registers.write64(Register64::INVALIDATION_QUEUE_TAIL, 16);
        registers.read32(Register32::VERSION);
    }));
    if let Err(panic) = result {
        let told = panic.downcast_ref::<String>().unwrap();
        assert!(told.contains("the emulator is lost at"), "{told}");
        assert!(told.contains("ssert"), "{told}");
        // It stays lost, and says so again.
        assert!(catch_unwind(AssertUnwindSafe(|| edu.read32(0))).is_err());
    } else {
        println!("not seen: {} does that", qemu.version());
    }
    drop((machine, registers, edu));
    assert!(!process.exists());
}

#[test]
fn a_panic_ends_the_emulator() {
    let Some(qemu) = qemu() else { return };
    let mut process = PathBuf::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let machine = start(&Options::second_stage(&qemu));
        process = PathBuf::from(format!("/proc/{}", machine.process_id()));
        assert!(process.is_dir());
        panic!("a scenario that fails");
    }));
    assert!(result.is_err());
    assert!(!process.exists());
}

#[test]
fn what_things_cost_is_printed() {
    let Some(qemu) = qemu() else { return };
    let options = Options::second_stage(&qemu);
    let timed = |what: &str, count: u32, action: &mut dyn FnMut()| {
        let start = Instant::now();
        for _ in 0..count {
            action();
        }
        println!("{what}: {:?}", start.elapsed() / count);
    };
    timed("start and end", 5, &mut || drop(start(&options)));
    let mut machine = start(&options);
    let (registers, edu) = (machine.registers(), machine.edu(0));
    let at = Iova::new(machine.ram().guests.start.as_u64());
    timed("register read", 200, &mut || {
        registers.read64(Register64::CAPABILITY);
    });
    timed("DMA of 8 bytes", 50, &mut || edu.dma_write(at, &[1; 8]));
    timed("DMA of 4 KiB", 50, &mut || edu.dma_write(at, &[1; 4096]));
    timed("reset", 5, &mut || machine.reset());
}
