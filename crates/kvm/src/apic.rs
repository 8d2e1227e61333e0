//! The local APIC's registers, in the kernel's form (its page, `KVM_GET_LAPIC`) and in ours.
//!
//! The timer is apart (`time`): the kernel's runs on host time.

use kvm_bindings::kvm_lapic_state;
use lapic::BUS_HZ;
use x86::ApicState;

/// Offsets of registers in the page (SDM vol. 3, table 11-1).
mod at {
    pub(super) const ID: usize = 0x20;
    pub(super) const TPR: usize = 0x80;
    pub(super) const LDR: usize = 0xd0;
    pub(super) const DFR: usize = 0xe0;
    pub(super) const SVR: usize = 0xf0;
    pub(super) const ISR: usize = 0x100;
    pub(super) const TMR: usize = 0x180;
    pub(super) const IRR: usize = 0x200;
    pub(super) const ESR: usize = 0x280;
    pub(super) const ICR_LOW: usize = 0x300;
    pub(super) const ICR_HIGH: usize = 0x310;
    pub(super) const LVT_TIMER: usize = 0x320;
    pub(super) const INITIAL_COUNT: usize = 0x380;
    pub(super) const CURRENT_COUNT: usize = 0x390;
    pub(super) const DIVIDE: usize = 0x3e0;
}

/// IA32_APIC_BASE: x2APIC mode.
const X2APIC: u64 = 1 << 10;
/// Bits of the LVT entries that software can write; the others are status.
const LVT_BITS: [u32; 6] = [
    0x0007_00ff,
    0x0001_07ff,
    0x0001_07ff,
    0x0001_a7ff,
    0x0001_a7ff,
    0x0001_00ff,
];
/// As of ICR: all but the delivery status and reserved bits.
const ICR_LOW_BITS: u32 = 0x000c_cfff;
const SVR_BITS: u32 = 0x11ff;
const ESR_BITS: u32 = 0xff;
const DIVIDE_BITS: u32 = 0b1011;

fn get(page: &kvm_lapic_state, at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| page.regs[at + n] as u8))
}

fn put(page: &mut kvm_lapic_state, at: usize, value: u32) {
    for (to, byte) in page.regs[at..].iter_mut().zip(value.to_le_bytes()) {
        *to = byte as _;
    }
}

fn set_of(page: &kvm_lapic_state, at: usize) -> [u32; 8] {
    std::array::from_fn(|n| get(page, at + 0x10 * n))
}

fn put_set(page: &mut kvm_lapic_state, at: usize, set: &[u32; 8]) {
    for (n, word) in set.iter().enumerate() {
        put(page, at + 0x10 * n, *word);
    }
}

/// The page of `state`, over what the kernel has in `page` (its version, say). The timer stands.
pub(crate) fn write(page: &mut kvm_lapic_state, state: &ApicState) {
    // In x2APIC mode too the kernel exchanges 8 bits of ID, unless it was asked for 32
    // (KVM_CAP_X2APIC_API).
    put(page, at::ID, state.id << 24);
    put(page, at::TPR, state.tpr.into());
    put(page, at::LDR, state.ldr);
    put(page, at::DFR, state.dfr);
    put(page, at::SVR, state.svr);
    put_set(page, at::ISR, &state.isr);
    put_set(page, at::TMR, &state.tmr);
    put_set(page, at::IRR, &state.irr);
    put(page, at::ESR, state.esr);
    put(page, at::ICR_LOW, state.icr as u32);
    put(page, at::ICR_HIGH, (state.icr >> 32) as u32);
    for (n, entry) in state.lvt.iter().enumerate() {
        put(page, at::LVT_TIMER + 0x10 * n, *entry);
    }
    put(page, at::INITIAL_COUNT, 0);
    put(page, at::CURRENT_COUNT, 0);
    put(page, at::DIVIDE, state.divide);
}

/// Takes the registers in `page` over, but for the timer's deadlines and IA32_APIC_BASE.
pub(crate) fn read(state: &mut ApicState, page: &kvm_lapic_state) {
    let x2apic = state.base & X2APIC != 0;
    state.id = get(page, at::ID) >> 24;
    state.tpr = get(page, at::TPR) as u8;
    // In x2APIC mode it follows from the ID, and the register is as it was left.
    if !x2apic {
        state.ldr = get(page, at::LDR) & 0xff00_0000;
    }
    state.dfr = get(page, at::DFR) | 0x0fff_ffff;
    state.svr = get(page, at::SVR) & SVR_BITS;
    state.isr = set_of(page, at::ISR);
    state.irr = set_of(page, at::IRR);
    // The kernel leaves the bits of vectors behind that are neither requested nor in service.
    state.tmr = set_of(page, at::TMR);
    state.esr = get(page, at::ESR) & ESR_BITS;
    state.icr =
        u64::from(get(page, at::ICR_HIGH)) << 32 | u64::from(get(page, at::ICR_LOW) & ICR_LOW_BITS);
    state.lvt = std::array::from_fn(|n| get(page, at::LVT_TIMER + 0x10 * n) & LVT_BITS[n]);
    state.divide = get(page, at::DIVIDE) & DIVIDE_BITS;
    state.initial_count = get(page, at::INITIAL_COUNT);
}

/// What the timer of the page has still to count; `None` if it does not count.
pub(crate) fn time_left(page: &kvm_lapic_state) -> Option<u64> {
    let left = get(page, at::CURRENT_COUNT);
    (counts(page) && get(page, at::INITIAL_COUNT) != 0 && left != 0)
        .then(|| u64::from(left) * count_nanos(get(page, at::DIVIDE)))
}

/// Lets the timer of the page count from `initial`, with `left` nanoseconds to go; `None` if it
/// stands.
pub(crate) fn set_time_left(page: &mut kvm_lapic_state, initial: u32, left: Option<u64>) {
    let count = left.map_or(0, |left| {
        let count = left.div_ceil(count_nanos(get(page, at::DIVIDE)));
        // None is left: it expires at once, which 0 would not say.
        count.clamp(1, initial.max(1).into()) as u32
    });
    // A one-shot count that has run down must not expire again: to the kernel it has none.
    put(
        page,
        at::INITIAL_COUNT,
        if count == 0 { 0 } else { initial },
    );
    put(page, at::CURRENT_COUNT, count);
}

/// Whether the timer counts from an initial count, rather than up to a TSC deadline.
fn counts(page: &kvm_lapic_state) -> bool {
    get(page, at::LVT_TIMER) >> 17 & 3 < 2
}

/// Whether the timer of `state` has a TSC deadline.
pub(crate) fn has_tsc_deadline(state: &ApicState) -> bool {
    state.lvt[0] >> 17 & 3 == 2
}

/// Nanoseconds of one count (SDM vol. 3, figure 11-10).
fn count_nanos(divide: u32) -> u64 {
    let divisor = match divide >> 1 & 4 | divide & 3 {
        0b111 => 1,
        code => 2 << code,
    };
    divisor * (1_000_000_000 / BUS_HZ)
}

/// Moves `vector` from those in service back to those requested: its delivery was not completed.
/// Returns whether it was in service, that is, whether it came from the local APIC.
pub(crate) fn take_back(state: &mut ApicState, vector: u8) -> bool {
    let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
    let in_service = state.isr[word] & bit != 0;
    if in_service {
        state.isr[word] &= !bit;
        state.irr[word] |= bit;
    }
    in_service
}

/// Vectors that are level-triggered, requested or in service: somebody waits for their end.
pub(crate) fn awaited_ends(state: &ApicState) -> impl Iterator<Item = u8> {
    (0..=255u8).filter(|vector| {
        let (word, bit) = (usize::from(vector / 32), 1u32 << (vector % 32));
        (state.irr[word] | state.isr[word]) & state.tmr[word] & bit != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ApicState {
        let mut state = ApicState::after_reset(3);
        state.tpr = 0x20;
        state.ldr = 0x0800_0000;
        state.svr = 0x1ff;
        state.isr[2] = 1 << 5;
        state.tmr[2] = 1 << 5;
        state.irr[7] = 1 << 31;
        state.icr = 0x0300_0000_000c_4500;
        state.lvt = [0x2_0030, 0x1_0000, 0x1_0000, 0x700, 0x400, 0xfe];
        state.divide = 0b1011;
        state
    }

    #[test]
    fn registers_come_back_as_they_were() {
        let state = state();
        let mut page = kvm_lapic_state::default();
        write(&mut page, &state);
        let mut copy = ApicState {
            base: state.base,
            ..ApicState::default()
        };
        read(&mut copy, &page);
        assert_eq!(copy, state);
        assert_eq!(awaited_ends(&state).collect::<Vec<_>>(), [0x45]);
    }

    #[test]
    fn sdm_11_5_4_the_count_goes_on_where_it_was() {
        let mut page = kvm_lapic_state::default();
        write(&mut page, &state());
        assert_eq!(time_left(&page), None);
        set_time_left(&mut page, 1000, Some(400));
        assert_eq!(time_left(&page), Some(400));
        // It was about to expire.
        set_time_left(&mut page, 1000, Some(0));
        assert_eq!(time_left(&page), Some(1));
        // It has expired and counts no more.
        set_time_left(&mut page, 1000, None);
        assert_eq!((time_left(&page), get(&page, at::INITIAL_COUNT)), (None, 0));
        // Divided by 16.
        put(&mut page, at::DIVIDE, 0b0011);
        set_time_left(&mut page, 1000, Some(1601));
        assert_eq!(get(&page, at::CURRENT_COUNT), 101);
    }

    #[test]
    fn an_interrupt_that_was_not_delivered_is_requested_again() {
        let mut state = state();
        assert!(take_back(&mut state, 0x45));
        assert_eq!((state.isr[2], state.irr[2]), (0, 1 << 5));
        assert!(!take_back(&mut state, 0x46));
    }
}
