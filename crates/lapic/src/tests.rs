//! Tests by section of the SDM vol. 3, chapter 11.

use crate::*;
use std::sync::Arc;

const TSC: Tsc = Tsc {
    khz: 3_000_000,
    offset: 500,
};

/// Offsets in the page.
mod at {
    pub(super) const ID: u64 = 0x20;
    pub(super) const VERSION: u64 = 0x30;
    pub(super) const TPR: u64 = 0x80;
    pub(super) const PPR: u64 = 0xa0;
    pub(super) const EOI: u64 = 0xb0;
    pub(super) const LDR: u64 = 0xd0;
    pub(super) const DFR: u64 = 0xe0;
    pub(super) const SVR: u64 = 0xf0;
    pub(super) const IRR1: u64 = 0x210;
    pub(super) const ESR: u64 = 0x280;
    pub(super) const ICR: u64 = 0x300;
    pub(super) const ICR_HIGH: u64 = 0x310;
    pub(super) const TIMER: u64 = 0x320;
    pub(super) const LINT0: u64 = 0x350;
    pub(super) const ERROR: u64 = 0x370;
    pub(super) const INITIAL: u64 = 0x380;
    pub(super) const CURRENT: u64 = 0x390;
    pub(super) const DIVIDE: u64 = 0x3e0;
}

fn enabled(id: u32) -> Lapic {
    let mut lapic = Lapic::new(id, 40);
    lapic.write(at::SVR, 0x1ff, 0);
    lapic
}

fn x2apic(id: u32) -> Lapic {
    let mut lapic = enabled(id);
    lapic.set_base(lapic.base() | 0xc00).unwrap();
    lapic
}

fn post(lapic: &mut Lapic, vector: u8, level: bool) {
    lapic.inbox().post(vector, level);
    assert!(lapic.take_inbox().is_empty());
}

#[test]
fn after_reset_the_apic_is_software_disabled_with_all_entries_masked() {
    let mut lapic = Lapic::new(3, 40);
    assert_eq!(lapic.page(), Some(0xfee0_0000));
    assert_eq!(lapic.read(at::ID, 0), 3 << 24);
    assert_eq!(lapic.read(at::VERSION, 0), 0x0105_0014);
    assert_eq!(lapic.read(at::SVR, 0), 0xff);
    for entry in (at::TIMER..=at::ERROR).step_by(16) {
        assert_eq!(lapic.read(entry, 0), 0x1_0000);
    }
    lapic.write(at::LINT0, 0x700, 0);
    assert_eq!(
        lapic.read(at::LINT0, 0),
        0x1_0700,
        "the mask can't be cleared"
    );
    let fixed = Message::from_msi(0xfee0_3000, 0x40).unwrap();
    assert!(!lapic.inbox().deliver(&fixed), "no interrupts are taken");
    let nmi = Message::from_msi(0xfee0_3000, 0x400).unwrap();
    assert!(lapic.inbox().deliver(&nmi), "but NMIs are");
}

#[test]
fn the_highest_vector_above_the_priority_is_delivered_first() {
    let mut lapic = enabled(0);
    for vector in [0x31, 0x92, 0x45] {
        post(&mut lapic, vector, false);
    }
    assert_eq!(lapic.pending(), Some(0x92));
    assert_eq!(lapic.acknowledge(), 0x92);
    assert_eq!(lapic.read(at::PPR, 0), 0x90);
    assert_eq!(lapic.pending(), None);
    post(&mut lapic, 0x9f, false);
    assert_eq!(lapic.pending(), None, "the same class waits");
    post(&mut lapic, 0xa0, false);
    assert_eq!(lapic.acknowledge(), 0xa0);
    lapic.write(at::EOI, 0, 0);
    lapic.write(at::EOI, 0, 0);
    assert_eq!(lapic.acknowledge(), 0x9f);
    lapic.write(at::EOI, 0, 0);
    lapic.write(at::TPR, 0x40, 0);
    assert_eq!(lapic.pending(), None);
    lapic.set_cr8(3).unwrap();
    assert_eq!(lapic.pending(), Some(0x45));
    assert_eq!(lapic.cr8(), 3);
    assert_eq!(lapic.set_cr8(16), Err(GeneralProtection));
}

#[test]
fn without_a_request_the_spurious_vector_is_delivered_and_not_in_service() {
    let mut lapic = enabled(0);
    assert_eq!(lapic.acknowledge(), 0xff);
    assert_eq!(lapic.in_service(), None);
}

#[test]
fn eoi_of_a_level_triggered_interrupt_is_broadcast_unless_suppressed() {
    let mut lapic = enabled(0);
    post(&mut lapic, 0x40, true);
    lapic.acknowledge();
    assert!(!lapic.may_skip_eoi());
    assert_eq!(lapic.write(at::EOI, 0, 0), Effect::EndOfInterrupt(0x40));
    post(&mut lapic, 0x40, false);
    lapic.acknowledge();
    assert!(lapic.may_skip_eoi());
    assert_eq!(lapic.write(at::EOI, 0, 0), Effect::None);
    lapic.write(at::SVR, 0x11ff, 0);
    post(&mut lapic, 0x40, true);
    lapic.acknowledge();
    assert_eq!(lapic.write(at::EOI, 0, 0), Effect::None);
    assert_eq!(
        lapic.write(at::EOI, 0, 0),
        Effect::None,
        "nothing in service"
    );
}

#[test]
fn an_eoi_that_lets_another_interrupt_through_can_not_be_skipped() {
    let mut lapic = enabled(0);
    post(&mut lapic, 0x60, false);
    lapic.acknowledge();
    assert!(lapic.may_skip_eoi());
    post(&mut lapic, 0x50, false);
    assert!(!lapic.may_skip_eoi());
}

#[test]
fn a_post_wakes_once_until_the_owner_looks() {
    let mut lapic = enabled(0);
    let inbox = lapic.inbox().clone();
    assert!(inbox.post(0x40, false));
    assert!(!inbox.post(0x41, false));
    assert!(inbox.has_news());
    lapic.take_inbox();
    assert!(!inbox.has_news());
    assert!(inbox.post(0x42, false));
}

#[test]
fn no_interrupt_is_lost_between_threads() {
    let mut lapic = enabled(0);
    let inbox = lapic.inbox().clone();
    const ROUNDS: usize = 2_000;
    let senders: Vec<_> = (0..2u8)
        .map(|half| {
            let inbox = inbox.clone();
            std::thread::spawn(move || {
                let own = 0x40 + half;
                for _ in 0..ROUNDS {
                    inbox.post(own, half == 1);
                    // The owner has taken it when the bit is gone.
                    while inbox.interrupts(usize::from(own / 32)).0 >> (own % 32) & 1 != 0 {
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let mut taken = [0; 2];
    while senders.iter().any(|s| !s.is_finished()) || inbox.has_news() {
        lapic.take_inbox();
        while lapic.pending().is_some() {
            let vector = lapic.acknowledge();
            let half = usize::from(vector - 0x40);
            taken[half] += 1;
            let expected = [Effect::None, Effect::EndOfInterrupt(0x41)][half];
            assert_eq!(lapic.end_of_interrupt(), expected);
        }
        std::thread::yield_now();
    }
    assert_eq!(taken, [ROUNDS; 2]);
}

#[test]
fn the_pic_interrupts_through_lint0_in_extint_mode_or_without_an_apic() {
    let mut lapic = enabled(0);
    assert!(lapic.inbox().set_external(true));
    assert!(!lapic.external_interrupt(), "masked");
    lapic.write(at::LINT0, 0x700, 0);
    assert!(lapic.external_interrupt());
    lapic.inbox().set_external(false);
    assert!(!lapic.external_interrupt());
    lapic.inbox().set_external(true);
    lapic.write(at::LINT0, 0x1_0700, 0);
    assert!(!lapic.external_interrupt());
    lapic.set_base(0xfee0_0100).unwrap();
    assert!(
        lapic.external_interrupt(),
        "globally disabled: LINT0 is INTR"
    );
    let mut firmware = Lapic::new(0, 40);
    firmware.set_virtual_wire_mode();
    firmware.inbox().set_external(true);
    assert!(firmware.external_interrupt() && firmware.passes_nmi());
}

#[test]
fn lint0_in_fixed_and_nmi_mode_takes_its_rising_edge() {
    let mut lapic = enabled(0);
    lapic.write(at::LINT0, 0x55, 0);
    lapic.inbox().set_external(true);
    lapic.inbox().set_external(false);
    assert!(lapic.take_inbox().is_empty());
    assert_eq!(lapic.pending(), Some(0x55));
    lapic.write(at::LINT0, 0x400, 0);
    lapic.inbox().set_external(true);
    assert!(lapic.take_inbox().nmi);
}

#[test]
fn one_shot_timer_expires_once_at_its_time() {
    let mut lapic = enabled(0);
    lapic.write(at::TIMER, 0x40, 0);
    lapic.write(at::DIVIDE, 0b0011, 0);
    lapic.write(at::INITIAL, 1000, 100);
    assert_eq!(lapic.next_deadline(100, TSC), Some(16_100));
    assert_eq!(lapic.read(at::CURRENT, 100 + 160), 990);
    lapic.advance(16_099, TSC);
    assert_eq!(lapic.pending(), None);
    lapic.advance(16_100, TSC);
    assert_eq!(lapic.acknowledge(), 0x40);
    assert_eq!(lapic.next_deadline(16_100, TSC), None);
    assert_eq!(lapic.read(at::CURRENT, 17_000), 0);
    assert_eq!(lapic.read(at::INITIAL, 17_000), 1000);
}

#[test]
fn periodic_timer_stays_on_its_grid_and_expires_once_for_missed_periods() {
    let mut lapic = enabled(0);
    lapic.write(at::TIMER, 0x2_0040, 0);
    lapic.write(at::DIVIDE, 0b1011, 0);
    lapic.write(at::INITIAL, 1_000_000, 7);
    let mut expired = 0;
    for late in [0, 13, 999_999, 1, 3_500_000] {
        let deadline = lapic.next_deadline(0, TSC).unwrap();
        assert_eq!(deadline % 1_000_000, 7);
        lapic.advance(deadline + late, TSC);
        expired += u32::from(lapic.pending().is_some());
        lapic.acknowledge();
        lapic.write(at::EOI, 0, 0);
    }
    assert_eq!(expired, 5);
    assert_eq!(lapic.next_deadline(0, TSC), Some(9_000_007));
    assert_eq!(lapic.read(at::CURRENT, 8_500_007), 500_000);
}

#[test]
fn a_masked_timer_runs_without_interrupting_and_0_stops_it() {
    let mut lapic = enabled(0);
    lapic.write(at::TIMER, 0x1_0040, 0);
    lapic.write(at::DIVIDE, 0b1011, 0);
    lapic.write(at::INITIAL, 10, 0);
    assert_eq!(lapic.read(at::CURRENT, 4), 6);
    lapic.advance(20, TSC);
    assert_eq!(lapic.pending(), None);
    lapic.write(at::INITIAL, 10, 20);
    lapic.write(at::INITIAL, 0, 25);
    assert_eq!(lapic.next_deadline(25, TSC), None);
}

#[test]
fn a_new_divisor_takes_what_is_left_of_the_count() {
    let mut lapic = enabled(0);
    lapic.write(at::TIMER, 0x40, 0);
    lapic.write(at::DIVIDE, 0b1011, 0);
    lapic.write(at::INITIAL, 1000, 0);
    lapic.write(at::DIVIDE, 0b0000, 600);
    assert_eq!(lapic.read(at::CURRENT, 600), 400);
    assert_eq!(lapic.next_deadline(600, TSC), Some(1400));
}

#[test]
fn tsc_deadline_arms_expires_and_disarms() {
    let mut lapic = enabled(0);
    lapic.set_tsc_deadline(1000);
    assert_eq!(lapic.tsc_deadline(), 0, "not in this mode");
    lapic.write(at::TIMER, 0x4_0040, 0);
    lapic.write(at::INITIAL, 1000, 0);
    assert_eq!(lapic.read(at::CURRENT, 0), 0, "the count does not run");
    lapic.set_tsc_deadline(TSC.at(1_000) + 1);
    assert_eq!(lapic.next_deadline(0, TSC), Some(1_001));
    lapic.advance(1_000, TSC);
    assert_eq!(lapic.pending(), None);
    lapic.advance(1_001, TSC);
    assert_eq!(lapic.acknowledge(), 0x40);
    assert_eq!(lapic.tsc_deadline(), 0);
    lapic.set_tsc_deadline(5);
    assert_eq!(
        lapic.next_deadline(2_000, TSC),
        Some(2_000),
        "in the past: at once"
    );
    lapic.set_tsc_deadline(0);
    assert_eq!(lapic.next_deadline(2_000, TSC), None);
    lapic.set_tsc_deadline(u64::MAX);
    assert!(lapic.next_deadline(2_000, TSC).unwrap() > 1 << 60);
    lapic.write(at::TIMER, 0x40, 0);
    assert_eq!(lapic.tsc_deadline(), 0, "a change of mode disarms");
}

#[test]
fn tsc_deadline_follows_a_counter_that_started_below_zero() {
    let tsc = Tsc {
        khz: 1_000_000,
        offset: 1_000u64.wrapping_neg(),
    };
    let mut lapic = enabled(0);
    lapic.write(at::TIMER, 0x4_0040, 0);
    lapic.set_tsc_deadline(500);
    assert_eq!(lapic.next_deadline(1_200, tsc), Some(1_500));
}

#[test]
fn apic_base_modes_follow_the_state_diagram() {
    let disabled = 0xfee0_0100;
    let (xapic, x2) = (disabled | 0x800, disabled | 0xc00);
    let mut lapic = enabled(0);
    assert_eq!(lapic.set_base(disabled | 0x400), Err(GeneralProtection));
    assert_eq!(lapic.set_base(xapic | 1), Err(GeneralProtection));
    assert_eq!(lapic.set_base(xapic | 1 << 40), Err(GeneralProtection));
    assert_eq!(lapic.base(), xapic);
    lapic.set_base(x2).unwrap();
    assert_eq!(lapic.page(), None);
    assert_eq!(lapic.read_msr(0x80f, 0), Ok(0x1ff), "registers are kept");
    assert_eq!(lapic.set_base(xapic), Err(GeneralProtection));
    lapic.set_base(disabled).unwrap();
    assert_eq!(lapic.set_base(x2), Err(GeneralProtection));
    lapic.set_base(xapic | 0x1_0000).unwrap();
    assert_eq!(lapic.page(), Some(0xfee1_0000));
    assert_eq!(
        lapic.read(at::SVR, 0),
        0xff,
        "what was disabled starts anew"
    );
}

#[test]
fn x2apic_msrs_refuse_reserved_bits_and_registers() {
    let mut lapic = enabled(0x25);
    assert_eq!(
        lapic.read_msr(0x802, 0),
        Err(GeneralProtection),
        "xAPIC mode"
    );
    let mut lapic = {
        lapic.set_base(lapic.base() | 0xc00).unwrap();
        lapic
    };
    assert_eq!(lapic.read_msr(0x802, 0), Ok(0x25));
    assert_eq!(lapic.read_msr(0x80d, 0), Ok(0x0002_0020));
    for write_only_or_absent in [
        0x80b, 0x83f, 0x809, 0x80c, 0x80e, 0x82f, 0x831, 0x8ff, 0x900,
    ] {
        assert!(lapic.read_msr(write_only_or_absent, 0).is_err());
    }
    let refused: [(u32, u64); 14] = [
        (0x802, 0),
        (0x803, 0),
        (0x808, 0x100),
        (0x80a, 0),
        (0x80b, 1),
        (0x80d, 0),
        (0x80f, 0x200),
        (0x810, 0),
        (0x828, 1),
        (0x830, 1 << 12),
        (0x832, 1 << 19),
        (0x838, 1 << 32),
        (0x839, 0),
        (0x83f, 0x100),
    ];
    for (msr, value) in refused {
        assert!(lapic.write_msr(msr, value, 0).is_err(), "{msr:#x}");
    }
    assert_eq!(lapic.write_msr(0x83f, 0x77, 0), Ok(Effect::None));
    assert_eq!(lapic.pending(), Some(0x77));
}

#[test]
fn illegal_vectors_are_recorded_and_raise_the_error_interrupt() {
    let mut lapic = enabled(0);
    lapic.write(at::ERROR, 0xe0, 0);
    lapic.inbox().post(5, false);
    lapic.take_inbox();
    assert_eq!(lapic.acknowledge(), 0xe0);
    lapic.write(at::EOI, 0, 0);
    assert_eq!(lapic.write(at::ICR, 0x4_0003, 0), Effect::None);
    assert_eq!(lapic.acknowledge(), 0xe0);
    assert_eq!(lapic.read(at::ESR, 0), 0, "shown by a write");
    lapic.write(at::ESR, 0, 0);
    assert_eq!(lapic.read(at::ESR, 0), 0x60);
    lapic.read(0x40, 0);
    lapic.write(at::ESR, 0, 0);
    assert_eq!(lapic.read(at::ESR, 0), 0x80);
}

#[test]
fn init_keeps_id_and_mode_and_clears_the_rest() {
    let mut lapic = x2apic(7);
    post(&mut lapic, 0x40, true);
    lapic.acknowledge();
    lapic.inbox().post(0x50, false);
    lapic.init();
    lapic.take_inbox();
    assert_eq!((lapic.pending(), lapic.in_service()), (None, None));
    assert_eq!(lapic.read_msr(0x802, 0), Ok(7));
    assert_eq!(lapic.read_msr(0x80f, 0), Ok(0xff));
}

#[test]
fn a_start_up_ipi_before_an_init_is_void() {
    let mut lapic = Lapic::new(1, 40);
    let inbox = lapic.inbox().clone();
    inbox.post_start_up(0x12);
    inbox.post_init();
    assert_eq!(lapic.inbox().requests().start_up, None);
    inbox.post_start_up(0x9a);
    let requests = lapic.take_inbox();
    assert_eq!((requests.init, requests.start_up), (true, Some(0x9a)));
    assert!(lapic.take_inbox().is_empty());
}

/// Local APICs with flat logical IDs 1, 2, 4, 8.
fn flat() -> Vec<Lapic> {
    (0..4)
        .map(|id| {
            let mut lapic = enabled(id);
            lapic.write(at::LDR, 1 << (24 + id), 0);
            lapic
        })
        .collect()
}

fn inboxes(lapics: &[Lapic]) -> Vec<Arc<Inbox>> {
    lapics.iter().map(|l| l.inbox().clone()).collect()
}

fn targets(lapics: &[Lapic], message: Option<Message>, source: Option<usize>) -> Vec<usize> {
    let mut targets = Vec::new();
    if let Some(message) = message {
        visit_targets(&inboxes(lapics), &message, source, |i| targets.push(i));
    }
    targets
}

/// What a write to the xAPIC's ICR reaches.
fn ipi(lapics: &mut [Lapic], source: usize, destination: u32, low: u32) -> Vec<usize> {
    lapics[source].write(at::ICR_HIGH, destination << 24, 0);
    match lapics[source].write(at::ICR, low, 0) {
        Effect::Message(message) => targets(lapics, Some(message), Some(source)),
        effect => {
            assert_eq!(effect, Effect::None);
            Vec::new()
        }
    }
}

#[test]
fn ipis_by_physical_id_and_shorthand() {
    let mut lapics = flat();
    assert_eq!(ipi(&mut lapics, 0, 2, 0x40), [2]);
    assert_eq!(ipi(&mut lapics, 0, 9, 0x40), []);
    assert_eq!(ipi(&mut lapics, 0, 0xff, 0x40), [0, 1, 2, 3]);
    assert_eq!(ipi(&mut lapics, 1, 0, 0x8_0040), [0, 1, 2, 3]);
    assert_eq!(ipi(&mut lapics, 1, 0, 0xc_0040), [0, 2, 3]);
    assert_eq!(ipi(&mut lapics, 1, 0, 0xc_0500), [0, 2, 3], "INIT");
    assert_eq!(ipi(&mut lapics, 1, 0, 0xc_8500), [], "INIT de-assert");
    assert_eq!(ipi(&mut lapics, 1, 2, 0x300), [], "reserved mode");
    assert_eq!(ipi(&mut lapics, 1, 0, 0x4_0041), []);
    assert_eq!(lapics[1].pending(), Some(0x41), "to itself");
}

#[test]
fn logical_destinations_in_the_flat_and_the_cluster_model() {
    let mut lapics = flat();
    assert_eq!(ipi(&mut lapics, 0, 0b1010, 0x840), [1, 3]);
    for (id, lapic) in lapics.iter_mut().enumerate() {
        lapic.write(at::DFR, 0, 0);
        let cluster = id as u32 / 2;
        lapic.write(at::LDR, (cluster << 4 | 1 << (id % 2)) << 24, 0);
    }
    assert_eq!(ipi(&mut lapics, 0, 0x13, 0x840), [2, 3]);
    assert_eq!(ipi(&mut lapics, 0, 0x02, 0x840), [1]);
    assert_eq!(ipi(&mut lapics, 0, 0xff, 0x840), [0, 1, 2, 3]);
}

#[test]
fn x2apic_logical_destinations_name_a_cluster_and_sixteen_in_it() {
    let mut lapics: Vec<_> = [0, 1, 0x10, 0x13, 300].map(x2apic).into();
    let mut send =
        |destination: u64, low: u64| match lapics[0].write_msr(0x830, destination << 32 | low, 0) {
            Ok(Effect::Message(message)) => targets(&lapics, Some(message), Some(0)),
            other => panic!("{other:?}"),
        };
    assert_eq!(send(0x0001_0009, 0x840), [2, 3]);
    assert_eq!(send(0x0000_0003, 0x840), [0, 1]);
    assert_eq!(send(300, 0x40), [4]);
    assert_eq!(send(0xff, 0x40), []);
    assert_eq!(send(0xffff_ffff, 0x40), [0, 1, 2, 3, 4]);
}

#[test]
fn msi_destinations_have_eight_bits_and_the_seven_of_the_extension() {
    let lapics: Vec<_> = [0, 5, 300].map(x2apic).into();
    let send = |address, data| targets(&lapics, Message::from_msi(address, data), None);
    assert_eq!(send(0xfee0_5000, 0x40), [1]);
    assert_eq!(
        send(0xfee0_0000 | (300 & 0xff) << 12 | (300 >> 8) << 5, 0x40),
        [2]
    );
    assert_eq!(send(0xfeef_f000, 0x40), [0, 1, 2]);
    assert_eq!(send(0xfee2_1004, 0x40), [0, 1], "logical");
    assert_eq!(send(0xfec0_0000, 0x40), []);
    assert_eq!(send(0xfee0_0000, 0x8040), [], "level de-assert");
    assert!(Message::from_msi(0xfee0_0000, 0xc040).unwrap().level);
}

#[test]
fn lowest_priority_goes_to_one_of_the_least_busy() {
    let mut lapics = flat();
    lapics[1].write(at::TPR, 0x20, 0);
    lapics[3].write(at::SVR, 0xff, 0);
    let send = |lapics: &[Lapic], vector: u32| {
        let message = Message::from_msi(0xfee0_f004, 0x100 | vector);
        targets(lapics, message, None)
    };
    assert_eq!(send(&lapics, 0x40), [0]);
    assert_eq!(send(&lapics, 0x41), [2]);
    lapics[0].write(at::TPR, 0x50, 0);
    lapics[2].write(at::TPR, 0x50, 0);
    assert_eq!(send(&lapics, 0x40), [1]);
}

#[test]
fn send_wakes_those_that_do_not_know_yet() {
    let lapics = flat();
    let inboxes = inboxes(&lapics);
    inboxes[2].post(0x30, false);
    let message = Message::from_msi(0xfeef_f000, 0x40).unwrap();
    let mut woken = Vec::new();
    send(&inboxes, &message, None, |i| woken.push(i));
    assert_eq!(woken, [0, 1, 3]);
}

#[test]
fn the_saved_state_holds_what_waits_in_the_inbox() {
    let mut lapic = enabled(0);
    post(&mut lapic, 0x35, true);
    lapic.inbox().post(0x35, false);
    lapic.inbox().post(0x46, true);
    let state = lapic.state();
    let mut copy = Lapic::new(0, 40);
    copy.set_state(&state).unwrap();
    assert_eq!(copy.state(), state);
    lapic.take_inbox();
    assert_eq!(lapic.state(), state);
    assert_eq!(copy.acknowledge(), 0x46);
    assert_eq!(copy.end_of_interrupt(), Effect::EndOfInterrupt(0x46));
    assert_eq!(copy.read(at::IRR1, 0), 1 << (0x35 - 32));
    let message = Message::from_msi(0xfee0_0000, 0x40).unwrap();
    assert!(
        copy.inbox().deliver(&message),
        "senders know that it is enabled"
    );
}

#[test]
fn impossible_states_are_refused() {
    let good = enabled(0).state();
    type Damage = fn(&mut x86::ApicState);
    let damages: [Damage; 12] = [
        |s| s.id = 1,
        |s| s.base = 0xfee0_0400,
        |s| s.ldr = 1,
        |s| s.dfr = 0,
        |s| s.svr = 0x2ff,
        |s| s.irr[0] = 1,
        |s| s.esr = 1,
        |s| s.icr = 1 << 12,
        |s| s.lvt[5] = 1 << 8,
        |s| s.divide = 4,
        |s| s.timer_deadline = Some(1),
        |s| s.tsc_deadline = 1,
    ];
    for (index, damage) in damages.iter().enumerate() {
        let mut state = good.clone();
        damage(&mut state);
        let mut lapic = Lapic::new(0, 40);
        let before = lapic.state();
        assert!(lapic.set_state(&state).is_err(), "damage {index}");
        assert_eq!(lapic.state(), before);
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// One random thing done to `lapic`; returns what was observed.
fn step(lapic: &mut Lapic, random: &mut Random, now: &mut u64) -> String {
    let tsc = Tsc {
        khz: 2_500_000,
        offset: u64::MAX - 1_000_000,
    };
    let (kind, value) = (random.next() >> 33, random.next());
    let value = value >> (random.next() >> 58);
    let offset = (random.next() >> 20 & 0x3f) * 16;
    let msr = 0x800 + (random.next() >> 20 & 0x41) as u32;
    match kind % 10 {
        0 => format!("{:?}", lapic.read(offset, *now)),
        1 | 2 => format!("{:?}", lapic.write(offset, value as u32, *now)),
        3 => format!("{:?}", lapic.read_msr(msr, *now)),
        4 => format!("{:?}", lapic.write_msr(msr, value & 0xf_ffff, *now)),
        5 => {
            *now += value >> 20;
            lapic.advance(*now, tsc);
            format!("{:?}", lapic.next_deadline(*now, tsc))
        }
        6 => {
            lapic.inbox().post(value as u8, value & 0x100 != 0);
            format!("{:?}", lapic.take_inbox())
        }
        7 => format!("{:?} {:?}", lapic.pending(), lapic.acknowledge()),
        8 => {
            lapic.set_tsc_deadline(value);
            format!("{:?} {:?}", lapic.end_of_interrupt(), lapic.may_skip_eoi())
        }
        // Rarely, else it is disabled most of the time.
        _ if value.is_multiple_of(16) => {
            let base = 0xfee0_0000 | random.next() >> 50 & 0xc00;
            format!(
                "{:?} {:?}",
                lapic.set_base(base),
                lapic.write(at::SVR, 0x1ff, *now)
            )
        }
        _ => format!("{:?}", lapic.set_cr8(value & 0xf)),
    }
}

#[test]
fn survives_hostile_accesses_and_snapshots() {
    let mut random = Random(0x14);
    let mut lapic = enabled(0);
    let mut now = 0;
    for _ in 0..100 {
        let state = lapic.state();
        let mut copy = Lapic::new(0, 40);
        copy.set_state(&state).expect("an own state restores");
        assert_eq!(copy.state(), state);
        for _ in 0..500 {
            let (mut copy_random, mut copy_now) = (Random(random.0), now);
            let original = step(&mut lapic, &mut random, &mut now);
            let other = step(&mut copy, &mut copy_random, &mut copy_now);
            assert_eq!(original, other);
        }
        lapic = copy;
    }
}
