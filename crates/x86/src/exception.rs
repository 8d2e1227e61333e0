//! Exceptions and their vectors.

use serde::{Deserialize, Serialize};

/// Vectors of the architecture's exceptions (SDM vol. 3, table 7-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Vector {
    /// #DE, division.
    DivideError = 0,
    /// #DB, debug.
    Debug = 1,
    /// NMI.
    Nmi = 2,
    /// #BP, INT3.
    Breakpoint = 3,
    /// #OF, INTO.
    Overflow = 4,
    /// #BR, BOUND.
    BoundRange = 5,
    /// #UD.
    InvalidOpcode = 6,
    /// #NM, no x87.
    DeviceNotAvailable = 7,
    /// #DF.
    DoubleFault = 8,
    /// #TS.
    InvalidTss = 10,
    /// #NP.
    SegmentNotPresent = 11,
    /// #SS.
    StackFault = 12,
    /// #GP.
    GeneralProtection = 13,
    /// #PF.
    PageFault = 14,
    /// #MF, x87.
    X87 = 16,
    /// #AC.
    AlignmentCheck = 17,
    /// #MC.
    MachineCheck = 18,
    /// #XM, SIMD.
    Simd = 19,
}

impl Vector {
    /// Whether the exception pushes an error code (SDM vol. 3, table 7-1).
    pub const fn has_error_code(self) -> bool {
        matches!(
            self,
            Self::DoubleFault
                | Self::InvalidTss
                | Self::SegmentNotPresent
                | Self::StackFault
                | Self::GeneralProtection
                | Self::PageFault
                | Self::AlignmentCheck
        )
    }

    /// Whether the exception counts as contributory for a double fault (SDM vol. 3, table 7-4).
    pub const fn is_contributory(self) -> bool {
        matches!(
            self,
            Self::DivideError
                | Self::InvalidTss
                | Self::SegmentNotPresent
                | Self::StackFault
                | Self::GeneralProtection
        )
    }
}

/// An exception to be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Which.
    pub vector: Vector,
    /// The error code; 0 where the vector has none.
    pub error_code: u32,
    /// What CR2 becomes (#PF), or the bits that DR6 gets (#DB); else 0.
    pub payload: u64,
}

impl Exception {
    /// An exception with an error code of 0, or none.
    pub const fn new(vector: Vector) -> Self {
        Self {
            vector,
            error_code: 0,
            payload: 0,
        }
    }

    /// An exception with an error code.
    pub const fn with_code(vector: Vector, error_code: u32) -> Self {
        Self {
            vector,
            error_code,
            payload: 0,
        }
    }
}
