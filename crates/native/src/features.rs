//! Which instruction-set extensions the host offers to user-mode code.

use std::sync::OnceLock;
use x86::cpuid::Vendor;

/// The vendor of the host, as far as it is one that differs.
pub fn host_vendor() -> Vendor {
    static HOST: OnceLock<Vendor> = OnceLock::new();
    *HOST.get_or_init(|| Vendor::of_signature(std::arch::x86_64::__cpuid(0).ebx))
}

/// The extensions that stubs may use, as far as this host and its operating system have them.
///
/// CPUID must not show a guest any of these that is `false` here. AVX and what builds on it
/// take XCR0 into account: the host's kernel must have enabled YMM state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one flag per CPUID bit")]
#[expect(missing_docs, reason = "named after the CPUID feature flags")]
pub struct Features {
    pub sse3: bool,
    pub ssse3: bool,
    pub sse4_1: bool,
    pub sse4_2: bool,
    pub popcnt: bool,
    pub aes: bool,
    pub pclmulqdq: bool,
    pub sha: bool,
    pub gfni: bool,
    pub avx: bool,
    pub avx2: bool,
    pub fma: bool,
    pub f16c: bool,
    pub vaes: bool,
    pub vpclmulqdq: bool,
    pub bmi1: bool,
    pub bmi2: bool,
    pub lzcnt: bool,
    pub adx: bool,
}

impl Features {
    /// The host's. x87, CMOV, MMX, SSE and SSE2 are part of every x86-64 CPU.
    pub fn host() -> &'static Self {
        static HOST: OnceLock<Features> = OnceLock::new();
        HOST.get_or_init(|| Self {
            sse3: is_x86_feature_detected!("sse3"),
            ssse3: is_x86_feature_detected!("ssse3"),
            sse4_1: is_x86_feature_detected!("sse4.1"),
            sse4_2: is_x86_feature_detected!("sse4.2"),
            popcnt: is_x86_feature_detected!("popcnt"),
            aes: is_x86_feature_detected!("aes"),
            pclmulqdq: is_x86_feature_detected!("pclmulqdq"),
            sha: is_x86_feature_detected!("sha"),
            gfni: is_x86_feature_detected!("gfni"),
            avx: is_x86_feature_detected!("avx"),
            avx2: is_x86_feature_detected!("avx2"),
            fma: is_x86_feature_detected!("fma"),
            f16c: is_x86_feature_detected!("f16c"),
            vaes: is_x86_feature_detected!("vaes"),
            vpclmulqdq: is_x86_feature_detected!("vpclmulqdq"),
            bmi1: is_x86_feature_detected!("bmi1"),
            bmi2: is_x86_feature_detected!("bmi2"),
            lzcnt: is_x86_feature_detected!("lzcnt"),
            adx: is_x86_feature_detected!("adx"),
        })
    }
}
