//! Local APICs in software: registers, MSRs, messages between two of them, time, snapshots.

use crate::input::Input;
use lapic::{Effect, Inbox, Lapic, Message, Tsc};
use std::sync::Arc;
use x86::{ApicState, msr};

const STEPS_MAX: usize = 4096;
const PHYSICAL_BITS: u32 = 46;
const COUNT: usize = 2;
/// The fastest TSC, 16 GHz.
const KHZ_MAX: u64 = 16_000_000;

struct Pair {
    lapics: [Lapic; COUNT],
    inboxes: [Arc<Inbox>; COUNT],
    now: u64,
    tsc: Tsc,
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let lapics = [0, 1].map(|id| Lapic::new(id, PHYSICAL_BITS));
    let mut pair = Pair {
        inboxes: std::array::from_fn(|index| lapics[index].inbox().clone()),
        lapics,
        now: 0,
        tsc: Tsc {
            khz: 1 + u64::from(input.u32()) % KHZ_MAX,
            offset: input.value(),
        },
    };
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            return;
        }
        let index = input.below(COUNT);
        pair.step(index, &mut input);
    }
}

impl Pair {
    fn step(&mut self, index: usize, input: &mut Input<'_>) {
        match input.below(16) {
            0..=2 => self.registers(index, input),
            3..=5 => self.msrs(index, input),
            6 | 7 => self.interrupts(index),
            8 | 9 => {
                if let Some(message) = Message::from_msi(0xfee0_0000 | input.value(), input.u32()) {
                    self.send(&message, None);
                }
            }
            10 | 11 => self.pass_time(index, input),
            12 => {
                self.inboxes[index].set_external(input.flag());
                let lapic = &mut self.lapics[index];
                let _ = (lapic.external_interrupt(), lapic.passes_nmi(), lapic.page());
            }
            13 => {
                let _ = self.lapics[index].set_cr8(input.value());
                assert!(self.lapics[index].cr8() < 16);
            }
            14 => {
                let mut state = self.lapics[index].state();
                self.keeps(index, &state);
                damage(&mut state, input);
                if self.lapics[index].set_state(&state).is_ok() {
                    self.keeps(index, &state);
                }
            }
            _ => match input.below(4) {
                0 => self.lapics[index].reset(),
                1 => self.lapics[index].init(),
                2 => self.lapics[index].set_virtual_wire_mode(),
                _ => {
                    let _ = self.lapics[index].set_base(input.value());
                }
            },
        }
    }

    fn registers(&mut self, index: usize, input: &mut Input<'_>) {
        let lapic = &mut self.lapics[index];
        let offset = match input.below(8) {
            0 => input.value() & 0xfff,
            _ => u64::from(input.u8() & 0x3f) << 4,
        };
        if input.flag() {
            let effect = lapic.write(offset, input.value() as u32, self.now);
            self.apply(index, effect);
        } else {
            lapic.read(offset, self.now);
        }
    }

    fn msrs(&mut self, index: usize, input: &mut Input<'_>) {
        let lapic = &mut self.lapics[index];
        let number = match input.below(8) {
            0 => input.u32(),
            1 => msr::IA32_TSC_DEADLINE,
            _ => msr::X2APIC_FIRST + u32::from(input.u8()),
        };
        if input.flag() {
            if let Ok(effect) = lapic.write_msr(number, input.value(), self.now) {
                self.apply(index, effect);
            }
        } else {
            let _ = lapic.read_msr(number, self.now);
        }
    }

    fn apply(&mut self, index: usize, effect: Effect) {
        if let Effect::Message(message) = effect {
            self.send(&message, Some(index));
        }
    }

    fn send(&self, message: &Message, source: Option<usize>) {
        lapic::send(&self.inboxes, message, source, |woken| {
            assert!(woken < COUNT)
        });
    }

    fn interrupts(&mut self, index: usize) {
        let lapic = &mut self.lapics[index];
        lapic.take_inbox();
        if let Some(vector) = lapic.pending() {
            assert!(vector >= 16, "vectors below 16 are illegal");
            assert_eq!(lapic.acknowledge(), vector);
            assert_eq!(lapic.in_service(), Some(vector));
        }
        let _ = lapic.may_skip_eoi();
        lapic.end_of_interrupt();
    }

    fn pass_time(&mut self, index: usize, input: &mut Input<'_>) {
        self.now += input.value() >> 20;
        let lapic = &mut self.lapics[index];
        if input.flag() {
            lapic.set_tsc_deadline(input.value());
        }
        lapic.advance(self.now, self.tsc);
        if let Some(deadline) = lapic.next_deadline(self.now, self.tsc) {
            assert!(
                deadline > self.now,
                "what was due at {} has expired",
                self.now
            );
        }
    }

    /// The state is what is saved, and is taken over as it is.
    fn keeps(&mut self, index: usize, state: &ApicState) {
        assert_eq!(self.lapics[index].state(), *state);
        self.lapics[index].set_state(state).expect("an own state");
        assert_eq!(self.lapics[index].state(), *state);
    }
}

fn damage(state: &mut ApicState, input: &mut Input<'_>) {
    let value = input.value();
    let bits = [&mut state.isr, &mut state.tmr, &mut state.irr];
    match input.below(17) {
        0 => state.base = value,
        1 => state.id = value as u32,
        2 => state.tpr = value as u8,
        3 => state.ldr = value as u32,
        4 => state.dfr = value as u32,
        5 => state.svr = value as u32,
        at @ 6..=8 => bits[at - 6][input.below(8)] = value as u32,
        9 => state.esr = value as u32,
        10 => state.icr = value,
        11 => state.lvt[input.below(6)] = value as u32,
        12 => state.divide = value as u32,
        13 => state.initial_count = value as u32,
        14 => state.timer_deadline = input.flag().then_some(value),
        15 => state.tsc_deadline = value,
        _ => state.esr_pending = value as u32,
    }
}
