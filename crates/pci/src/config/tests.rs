use super::*;
use device::testing::Recorder;
use std::sync::Arc;

fn config(log: &Arc<Recorder>) -> ConfigSpace {
    let identity = Identity {
        vendor: 0x1234,
        device: 0x5678,
        revision: 9,
        class: [0x02, 0x03, 0x04],
        subsystem_vendor: 0xaaaa,
        subsystem: 0xbbbb,
    };
    let wires = Wires {
        intx: InterruptLine::new(log.clone(), 0),
        msi: Msi::new(log.clone()),
    };
    let mut config = ConfigSpace::new(identity, wires);
    config.enable_intx();
    config
}

fn write(config: &mut ConfigSpace, at: usize, value: u32) {
    config.write(at as u16, Width::Dword, value);
}

fn read(config: &ConfigSpace, at: usize) -> u32 {
    config.read(at as u16, Width::Dword)
}

#[test]
fn the_header_says_who_it_is() {
    let mut config = config(&Recorder::new());
    write(&mut config, VENDOR, !0);
    write(&mut config, REVISION, !0);
    assert_eq!(read(&config, VENDOR), 0x5678_1234);
    assert_eq!(read(&config, REVISION), 0x0203_0409);
    assert_eq!(read(&config, SUBSYSTEM_VENDOR), 0xbbbb_aaaa);
    assert_eq!(config.read(DEVICE as u16 + 1, Width::Byte), 0x56);
    assert_eq!(
        config.read(0x100, Width::Dword),
        0,
        "no extended capabilities"
    );
    assert_eq!(config.read(0xffc, Width::Dword), 0);
}

#[test]
fn section_6_2_5_1_sizing() {
    let mut config = config(&Recorder::new());
    config.add_bar(0, BarKind::Io, 0x20);
    config.add_bar(1, BarKind::Memory32, 0x1000);
    config.add_bar(2, BarKind::Memory64, 0x4_0000_0000);
    for bar in 0..6 {
        write(&mut config, BARS + 4 * bar, !0);
    }
    let sized: Vec<u32> = (0..6).map(|bar| read(&config, BARS + 4 * bar)).collect();
    assert_eq!(sized, [0xffff_ffe1, 0xffff_f000, 4, 0xffff_fffc, 0, 0]);
}

#[test]
fn decoders_follow_the_command_register() {
    let mut config = config(&Recorder::new());
    config.add_bar(0, BarKind::Io, 0x20);
    config.add_bar(2, BarKind::Memory64, 0x1000);
    write(&mut config, BARS, 0xc001);
    write(&mut config, BARS + 8, 0x5000);
    write(&mut config, BARS + 12, 0x7);
    assert_eq!(config.decoded(), []);
    write(&mut config, COMMAND, COMMAND_MEMORY.into());
    let memory = Decoded {
        bar: 2,
        decoder: Decoder::Memory,
        base: 0x7_0000_5000,
        len: 0x1000,
    };
    assert_eq!(config.decoded(), [memory]);
    write(&mut config, COMMAND, COMMAND_IO.into());
    let io = Decoded {
        bar: 0,
        decoder: Decoder::Io,
        base: 0xc000,
        len: 0x20,
    };
    assert_eq!(config.decoded(), [io]);
}

#[test]
fn capabilities_form_a_list() {
    let mut config = config(&Recorder::new());
    config.add_msi(2);
    config.add_capability(9, &[1, 2, 3], &[0xff, 0, 0]);
    config.add_msix(4, 3);
    assert_ne!(
        read(&config, COMMAND) >> 16 & u32::from(STATUS_CAPABILITIES),
        0
    );
    let mut ids = Vec::new();
    let mut at = config.read(CAPABILITIES as u16, Width::Byte);
    while at != 0 {
        assert_eq!(at % 4, 0);
        ids.push(config.read(at as u16, Width::Byte));
        at = config.read(at as u16 + 1, Width::Byte);
    }
    assert_eq!(ids, [5, 9, 0x11]);
}

#[test]
fn intx_follows_interrupt_disable_and_shows_in_status() {
    let log = Recorder::new();
    let mut config = config(&log);
    config.set_intx(true);
    assert!(log.level(0));
    write(&mut config, COMMAND, COMMAND_INTX_DISABLE.into());
    assert!(!log.level(0));
    assert_ne!(
        read(&config, COMMAND) >> 16 & u32::from(STATUS_INTERRUPT),
        0
    );
    write(&mut config, COMMAND, 0);
    assert!(log.level(0));
    config.set_intx(false);
    assert!(!log.level(0));
}

/// A function with two MSI-X vectors, messages set, and the offset of its message control.
fn with_msix(log: &Arc<Recorder>) -> (ConfigSpace, u16) {
    let mut config = config(log);
    config.add_msix(0, 2);
    let at = config.read(CAPABILITIES as u16, Width::Byte) as u16;
    for vector in 0..2u64 {
        config.msix_write(0, vector * 16, Width::Qword, 0xfee0_0000);
        config.msix_write(0, vector * 16 + 8, Width::Qword, 0x40 + vector);
    }
    (config, at + 2)
}

const MSIX_ENABLE: u32 = 0x8000;
const MSIX_FUNCTION_MASK: u32 = 0x4000;

#[test]
fn msix_sends_when_enabled_and_silences_the_pin() {
    let log = Recorder::new();
    let (mut config, control) = with_msix(&log);
    config.trigger(1);
    assert_eq!(log.take_messages(), []);
    config.set_intx(true);
    config.write(control, Width::Word, MSIX_ENABLE);
    assert!(!log.level(0));
    config.trigger(1);
    config.trigger(7);
    assert_eq!(log.take_messages(), [(0xfee0_0000, 0x41)]);
}

#[test]
fn a_masked_msix_vector_is_pending_until_unmasked() {
    let log = Recorder::new();
    let (mut config, control) = with_msix(&log);
    config.write(control, Width::Word, MSIX_ENABLE);
    config.msix_write(0, 16 + 12, Width::Dword, 1);
    config.trigger(1);
    config.trigger(1);
    assert_eq!(log.take_messages(), []);
    assert_eq!(config.msix_read(0, 32, Width::Qword), Some(0b10));
    config.msix_write(0, 32, Width::Qword, 0);
    assert_eq!(
        config.msix_read(0, 32, Width::Dword),
        Some(0b10),
        "read-only"
    );
    config.msix_write(0, 16 + 12, Width::Dword, 0);
    assert_eq!(log.take_messages(), [(0xfee0_0000, 0x41)]);
    assert_eq!(config.msix_read(0, 32, Width::Qword), Some(0));
}

#[test]
fn the_msix_function_mask_holds_all_vectors() {
    let log = Recorder::new();
    let (mut config, control) = with_msix(&log);
    config.write(control, Width::Word, MSIX_ENABLE | MSIX_FUNCTION_MASK);
    config.trigger(0);
    config.trigger(1);
    assert_eq!(log.take_messages(), []);
    config.write(control, Width::Word, MSIX_ENABLE);
    assert_eq!(
        log.take_messages(),
        [(0xfee0_0000, 0x40), (0xfee0_0000, 0x41)]
    );
}

#[test]
fn msi_masks_remembers_and_limits_vectors() {
    let log = Recorder::new();
    let mut config = config(&log);
    config.add_msi(2);
    let at = config.read(CAPABILITIES as u16, Width::Byte) as u16;
    config.write(at + 4, Width::Dword, 0xfee0_1000);
    config.write(at + 12, Width::Word, 0x53);
    // Enabled, with two of the four vectors.
    config.write(at + 2, Width::Word, 0x11);
    config.trigger(1);
    config.trigger(2);
    assert_eq!(
        log.take_messages(),
        [(0xfee0_1000, 0x53), (0xfee0_1000, 0x52)]
    );
    config.write(at + 16, Width::Dword, 0b10);
    config.trigger(1);
    assert_eq!(log.take_messages(), []);
    assert_eq!(config.read(at + 20, Width::Dword), 0b10);
    config.write(at + 16, Width::Dword, 0);
    assert_eq!(log.take_messages(), [(0xfee0_1000, 0x53)]);
    assert_eq!(config.read(at + 20, Width::Dword), 0);
}

#[test]
fn what_is_saved_comes_back_and_nothing_else() {
    let log = Recorder::new();
    let (mut original, control) = with_msix(&log);
    original.write(control, Width::Word, MSIX_ENABLE | MSIX_FUNCTION_MASK);
    original.trigger(0);
    write(&mut original, BARS, 0xd000_0000);
    write(&mut original, COMMAND, COMMAND_MEMORY.into());
    let state = original.save();

    let (mut other, _) = with_msix(&log);
    other.restore(state.clone()).unwrap();
    assert_eq!(other.save(), state);
    assert_eq!(other.decoded(), original.decoded());
    other.write(control, Width::Word, MSIX_ENABLE);
    assert_eq!(log.take_messages(), [(0xfee0_0000, 0x40)]);

    let before = other.save();
    let mut another = state.clone();
    another.bytes[VENDOR] ^= 1;
    let mut short = state.clone();
    short.bytes.pop();
    let without = ConfigSpaceV1 {
        msix: None,
        ..state.clone()
    };
    let pending = ConfigSpaceV1 {
        msi_pending: 1,
        ..state
    };
    for bad in [another, short, without, pending] {
        assert!(other.restore(bad).is_err());
        assert_eq!(other.save(), before);
    }
}
