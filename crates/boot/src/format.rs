//! What kind of kernel a file is.

use crate::{Error, le};

/// Kinds of kernel that can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Linux's boot protocol, which other systems follow too.
    BzImage,
    /// ELF for x86, 32 or 64 bits; whether it has a PVH entry shows when it is loaded.
    Elf,
}

/// Something that is no kernel for this machine, by the bytes at an offset.
struct Magic {
    at: usize,
    bytes: &'static [u8],
    what: &'static str,
    mend: &'static str,
}

const UNPACK: &str = "unpack it first";
const AS_DISK: &str = "give it as a disk instead";

/// More specific ones first: an EFI zboot image is an EFI program too.
const FOREIGN: &[Magic] = &[
    magic(
        4,
        b"zimg",
        "an EFI zboot image",
        "take the kernel out of it, or a plain vmlinuz",
    ),
    magic(0x38, b"ARM\x64", "an arm64 kernel", "give one for x86-64"),
    magic(0x38, b"RSC\x05", "a RISC-V kernel", "give one for x86-64"),
    magic(0, b"\x1f\x8b", "gzip-compressed", UNPACK),
    magic(0, b"\xfd7zXZ\0", "xz-compressed", UNPACK),
    magic(0, b"\x28\xb5\x2f\xfd", "zstd-compressed", UNPACK),
    magic(0, b"\x04\x22\x4d\x18", "LZ4-compressed", UNPACK),
    magic(0, b"\x02\x21\x4c\x18", "LZ4-compressed", UNPACK),
    magic(0, b"BZh", "bzip2-compressed", UNPACK),
    magic(0, b"\x89LZO\0", "LZO-compressed", UNPACK),
    magic(0, b"PK\x03\x04", "a ZIP archive", UNPACK),
    magic(
        0,
        b"!<arch>\n",
        "an archive or a package",
        "unpack the kernel from it first",
    ),
    magic(
        0,
        b"0707",
        "a cpio archive",
        "give it as the initrd, with a kernel",
    ),
    magic(
        0,
        b"\x27\x05\x19\x56",
        "a U-Boot image",
        "unpack the kernel from it first",
    ),
    magic(
        0,
        b"\xd0\x0d\xfe\xed",
        "a device tree",
        "give a bzImage (vmlinuz)",
    ),
    magic(0, b"QFI\xfb", "a qcow2 disk image", AS_DISK),
    magic(0, b"KDMV", "a VMDK disk image", AS_DISK),
    magic(0, b"vhdxfile", "a VHDX disk image", AS_DISK),
    magic(0, b"conectix", "a VHD disk image", AS_DISK),
    magic(
        0x8001,
        b"CD001",
        "an ISO 9660 image",
        "give it as a CD-ROM instead",
    ),
    magic(0x200, b"EFI PART", "a partitioned disk image", AS_DISK),
    magic(0, b"#!", "a script", "give a bzImage (vmlinuz)"),
    magic(
        0,
        b"MZ",
        "an EFI or DOS program",
        "give a bzImage, or boot it from a disk with UEFI",
    ),
    magic(510, b"\x55\xaa", "a boot sector or a disk image", AS_DISK),
];

const fn magic(at: usize, bytes: &'static [u8], what: &'static str, mend: &'static str) -> Magic {
    Magic {
        at,
        bytes,
        what,
        mend,
    }
}

/// ELF machines that a kernel file may be for by mistake (System V gABI, `e_machine`).
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;

/// How many bytes from the start of a file tell what it is.
pub(crate) const HEAD_LEN: usize = 0x8001 + 5;

/// Which kind of kernel it is whose file begins with `file`.
///
/// # Errors
/// [`Error::Empty`], [`Error::Foreign`] for what is known and no kernel for this machine,
/// [`Error::Unknown`] for the rest.
pub fn detect(file: &[u8]) -> Result<Format, Error> {
    if file.is_empty() {
        return Err(Error::Empty);
    }
    if has(file, 0x1fe, b"\x55\xaa") && has(file, 0x202, b"HdrS") {
        return Ok(Format::BzImage);
    }
    if has(file, 0, b"\x7fELF") {
        return detect_elf(file);
    }
    let known = FOREIGN.iter().find(|m| has(file, m.at, m.bytes));
    Err(known.map_or(Error::Unknown, |m| Error::Foreign {
        what: m.what,
        mend: m.mend,
    }))
}

fn detect_elf(file: &[u8]) -> Result<Format, Error> {
    // Byte 5 is the data encoding; 2 is big-endian, in which no x86 file is.
    match (file.get(5), le::u16(file, 18)) {
        (Some(1), Some(EM_386 | EM_X86_64)) => Ok(Format::Elf),
        (_, None) => Err(Error::Foreign {
            what: "a truncated ELF file",
            mend: "fetch it anew",
        }),
        _ => Err(Error::Foreign {
            what: "an ELF file for another CPU",
            mend: "give one for x86-64",
        }),
    }
}

fn has(file: &[u8], at: usize, bytes: &[u8]) -> bool {
    file.get(at..).is_some_and(|rest| rest.starts_with(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 0x9000];
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        for known in FOREIGN {
            let error = detect(&with(known.at, known.bytes)).unwrap_err();
            assert!(
                matches!(error, Error::Foreign { what, .. } if what == known.what),
                "{}: {error}",
                known.what
            );
            assert!(!error.to_string().contains('\n'));
        }
        let gzip = detect(b"\x1f\x8b").unwrap_err().to_string();
        assert_eq!(gzip, "not a kernel: it is gzip-compressed; unpack it first");
    }

    #[test]
    fn an_efi_zboot_image_is_not_just_an_efi_program() {
        let mut file = with(0, b"MZ");
        file[4..8].copy_from_slice(b"zimg");
        assert!(detect(&file).unwrap_err().to_string().contains("zboot"));
    }

    #[test]
    fn kernels_are_told_by_their_headers() {
        // A bzImage with an EFI stub begins as an EFI program does.
        let mut file = with(0x1fe, b"\x55\xaa");
        file[0..2].copy_from_slice(b"MZ");
        assert!(detect(&file).is_err());
        file[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(detect(&file).unwrap(), Format::BzImage);

        let mut file = with(0, b"\x7fELF\x02\x01\x01");
        assert!(
            detect(&file)
                .unwrap_err()
                .to_string()
                .contains("another CPU")
        );
        file[18] = 62;
        assert_eq!(detect(&file).unwrap(), Format::Elf);
        file.truncate(18);
        assert!(detect(&file).unwrap_err().to_string().contains("truncated"));
    }

    #[test]
    fn nothing_and_noise_are_refused() {
        assert!(matches!(detect(&[]), Err(Error::Empty)));
        assert!(matches!(detect(&[0x42; 4096]), Err(Error::Unknown)));
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(file in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = detect(&file);
        }
    }
}
