//! PCI: root complex, ECAM and legacy configuration access, BARs, MSI and MSI-X
