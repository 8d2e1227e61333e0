//! The byte form of a list of sections.
//!
//! ```text
//! magic "DOPPELST" | format u16 | count u32 | crc32 of these 14 bytes
//! then per section:  kind, instance (u8 length + UTF-8) | version u16 | length u32
//!                    | payload | crc32 of all of this section's bytes
//! ```
//! Integers are little-endian. Nothing may follow the last section.

use crate::{Error, Section};

/// The version of the container (not of what stands in it).
pub const FORMAT_VERSION: u16 = 1;
/// The most sections that a state may have.
pub const SECTIONS_MAX: usize = 65_536;
/// The longest payload of one section, in bytes.
pub const SECTION_BYTES_MAX: usize = 64 << 20;

const MAGIC: &[u8; 8] = b"DOPPELST";

pub(crate) fn encode(sections: &[Section]) -> Vec<u8> {
    assert!(sections.len() <= SECTIONS_MAX);
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&(sections.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    for section in sections {
        assert!(section.payload.len() <= SECTION_BYTES_MAX);
        let start = out.len();
        for name in [&section.kind, &section.instance] {
            out.push(u8::try_from(name.len()).expect("names are short"));
            out.extend_from_slice(name.as_bytes());
        }
        out.extend_from_slice(&section.version.to_le_bytes());
        out.extend_from_slice(&(section.payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&section.payload);
        let crc = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }
    out
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Section>, Error> {
    let mut input = Input { bytes, at: 0 };
    if input.array::<8>()? != *MAGIC {
        return Err(Error::Format("it does not begin with DOPPELST"));
    }
    let version = u16::from_le_bytes(input.array()?);
    let count = u32::from_le_bytes(input.array()?) as usize;
    input.check(0)?;
    if version > FORMAT_VERSION {
        return Err(Error::Newer {
            what: "the format".into(),
            found: version,
            known: FORMAT_VERSION,
        });
    }
    if count > SECTIONS_MAX {
        return Err(Error::Format("too many sections"));
    }
    let mut sections = Vec::new();
    for _ in 0..count {
        let start = input.at;
        let kind = input.name()?;
        let instance = input.name()?;
        let version = u16::from_le_bytes(input.array()?);
        let len = u32::from_le_bytes(input.array()?) as usize;
        if len > SECTION_BYTES_MAX {
            return Err(Error::Format("a section is too long"));
        }
        let payload = input.slice(len)?.to_vec();
        input.check(start)?;
        sections.push(Section {
            kind,
            instance,
            version,
            payload,
        });
    }
    if input.at != bytes.len() {
        return Err(Error::Format("bytes follow the last section"));
    }
    Ok(sections)
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn slice(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let slice = self.bytes[self.at..]
            .get(..len)
            .ok_or(Error::Format("it is cut short"))?;
        self.at += len;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        Ok(self.slice(N)?.try_into().expect("the slice has N bytes"))
    }

    fn name(&mut self) -> Result<String, Error> {
        let [len] = self.array()?;
        let bytes = self.slice(usize::from(len))?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Error::Format("a name is not UTF-8"))
    }

    /// Reads a checksum and compares it with that of all bytes since `start`.
    fn check(&mut self, start: usize) -> Result<(), Error> {
        let computed = crc32fast::hash(&self.bytes[start..self.at]);
        if u32::from_le_bytes(self.array()?) != computed {
            return Err(Error::Format("a checksum is wrong"));
        }
        Ok(())
    }
}
