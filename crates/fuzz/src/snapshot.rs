//! A machine's saved state as bytes from anywhere.

use crate::bench::damage;
use crate::input::Input;
use state::{Persist, Reader, Section, Writer};
use x86::VcpuState;

/// Reads the input as a saved state, and a good one that the input damages. Checksums are made
/// right, so that what is behind them is reached.
pub(crate) fn run(data: &[u8]) {
    if let Ok(reader) = Reader::from_bytes(data) {
        take_all(reader);
    }
    let mut input = Input::new(data);
    let mut sections = good();
    for _ in 0..input.below(4) {
        let section = input.below(sections.len());
        damage_section(&mut sections[section], &mut input);
    }
    let mut bytes = encode(&sections);
    if let Ok(reader) = Reader::from_bytes(&bytes) {
        take_all(reader);
    }
    damage(&mut bytes, &mut input);
    if let Ok(reader) = Reader::from_bytes(&bytes) {
        take_all(reader);
    }
}

/// Byte strings that are nearly states.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![encode(&good()), encode(&[])]
}

fn good() -> Vec<Section> {
    let mut writer = Writer::new();
    writer.put("vcpu0", &VcpuState::after_reset(0));
    writer.save(
        "it",
        &chipset::Pic::new(device::InterruptLine::unconnected()),
    );
    writer.save("it", &crate::virtio::new_console());
    writer.into_sections()
}

fn damage_section(section: &mut Section, input: &mut Input<'_>) {
    match input.below(8) {
        0 => section.version = input.u16(),
        1 => section.instance = String::from_utf8_lossy(input.bytes(80)).into_owned(),
        2 => section.payload = input.bytes(4096).to_vec(),
        _ => damage(&mut section.payload, input),
    }
}

/// Takes what there is, of every type.
fn take_all(mut reader: Reader) {
    if let Ok(state) = reader.take::<VcpuState>("vcpu0") {
        let mut writer = Writer::new();
        writer.put("vcpu0", &state);
        let again = Reader::new(writer.into_sections()).take::<VcpuState>("vcpu0");
        assert_eq!(
            again.ok().as_ref(),
            Some(&state),
            "what was read is written and read again"
        );
    }
    let mut pic = chipset::Pic::new(device::InterruptLine::unconnected());
    restore_or_refuse(&mut reader, &mut pic);
    restore_or_refuse(&mut reader, &mut crate::virtio::new_console());
    let _ = reader.finish();
}

fn restore_or_refuse<C: Persist>(reader: &mut Reader, component: &mut C)
where
    C::State: PartialEq + std::fmt::Debug,
{
    let before = component.save();
    if reader.restore("it", component).is_err() {
        assert_eq!(component.save(), before, "a refused state changes nothing");
    }
}

/// The byte form that `state` documents, with right checksums whatever is in the sections.
fn encode(sections: &[Section]) -> Vec<u8> {
    let mut bytes = b"DOPPELST".to_vec();
    bytes.extend(state::FORMAT_VERSION.to_le_bytes());
    bytes.extend((sections.len() as u32).to_le_bytes());
    close(&mut bytes, 0);
    for Section {
        kind,
        instance,
        version,
        payload,
    } in sections
    {
        let start = bytes.len();
        for name in [kind, instance] {
            let name = &name.as_bytes()[..name.len().min(255)];
            bytes.push(name.len() as u8);
            bytes.extend(name);
        }
        bytes.extend(version.to_le_bytes());
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(payload);
        close(&mut bytes, start);
    }
    bytes
}

/// Adds the checksum of the bytes since `start`.
fn close(bytes: &mut Vec<u8>, start: usize) {
    let checksum = crc32fast::hash(&bytes[start..]);
    bytes.extend(checksum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_that_of_the_crate_state() {
        let mut writer = Writer::new();
        writer.put("vcpu0", &VcpuState::after_reset(0));
        let bytes = encode(&writer.into_sections());
        let mut writer = Writer::new();
        writer.put("vcpu0", &VcpuState::after_reset(0));
        assert_eq!(bytes, writer.into_bytes());
    }
}
