//! How a guest starts: bzImage, ELF with PVH, ACPI and SMBIOS tables, initial registers
