//! SDM vol. 3, chapters 10 and 11, and KVM's interface: several vCPUs, the local APIC, clocks.

use super::board::{Board, CODE, DATA, HANDLERS, PAGE_TABLE, STACK};
use clock::Clock;
use engine::{Engine, Exit, Platform, Vcpu};
use std::sync::Arc;
use x86::{Activity, msr};

fn host_clock() -> Clock {
    let clock = Clock::stopped_at(0);
    clock.resume();
    clock
}

/// Puts the first vCPU of `board` into the state of a [`Board::long`] of the same memory layout.
fn long_with(vcpus: u32, clock: Clock) -> Board {
    let model = Board::long(0);
    let mut board = Board::with(vcpus, clock);
    let mut low = vec![0; 0x20000];
    model.memory.read(0, &mut low).unwrap();
    board.write(0, &low);
    let mut state = model.state();
    state.apic.svr = 0x1ff;
    board.set_state(&state);
    // The APIC's page, behind the first 2 MiB of the last GiB below 4 GiB.
    board.set(0x11018, 0x14007);
    board.set(0x14000 + 8 * 0x1f7, 0xfee0_0000 | 0x83);
    board
}

/// mov dword [APIC + offset], value
fn apic_write(offset: u8, value: u32) -> Vec<u8> {
    // mov eax, 0xfee00000 (zero-extended); mov dword [rax + disp32], value
    let mut code = vec![0xb8, 0, 0, 0xe0, 0xfe, 0xc7, 0x80];
    code.extend((u32::from(offset) << 4).to_le_bytes());
    code.extend(value.to_le_bytes());
    code
}

#[test]
fn sdm_10_4_4_init_and_sipi_start_another_processor() {
    let mut board = long_with(2, host_clock());
    let mut code = apic_write(0x31, 1 << 24);
    code.extend(apic_write(0x30, 0x4500));
    code.extend(apic_write(0x30, 0x460c));
    let wait = CODE + code.len() as u64;
    // Wait until the other one has written: cmp byte [0x9000], 0; jz; nop
    code.extend([0x80, 0x3c, 0x25, 0x00, 0x90, 0, 0, 0, 0x74, 0xf6, 0x90]);
    board.code(&code);
    // At 0xc000 in real mode: mov ax, cs; mov ds:[0x9000] via DS = 0; hlt
    board.write(
        0xc000,
        &[0x31, 0xc0, 0x8e, 0xd8, 0xc6, 0x06, 0x00, 0x90, 0x01, 0xf4],
    );
    let mut other = board.vcpus.pop().unwrap();
    assert_eq!(other.state().activity, Activity::WaitForSipi);
    let platform: Arc<dyn Platform> = board.ports.clone();
    let thread = std::thread::spawn(move || {
        assert_eq!(other.run(&platform), Exit::Kicked);
        other.state()
    });
    board.run_to(&[wait + 10]);
    board.engine.kick(1);
    let state = thread.join().unwrap();
    assert_eq!(state.segments[1].selector.0, 0xc00);
    assert_eq!(state.segments[1].base, 0xc000);
}

#[test]
fn sdm_11_5_4_the_apic_timer_interrupts_a_halt() {
    let mut board = long_with(1, host_clock());
    let mut code = apic_write(0x32, 0x40);
    code.extend(apic_write(0x38, 50_000));
    code.extend([0xfb, 0xf4, 0x90]);
    let end = CODE + code.len() as u64;
    board.code(&code);
    let (vector, state) = board.run_to_handler();
    assert_eq!(vector, 0x40);
    assert_eq!(board.word(state.gpr[4]), end - 1);
    assert_eq!(state.apic.isr[2], 1);
    // EOI ends it.
    board.write(HANDLERS + 0x400, &apic_write(0x0b, 0));
    board.step();
    assert_eq!(board.step().apic.isr[2], 0);
}

#[test]
fn an_msi_reaches_its_vcpu_and_a_level_interrupt_is_broadcast_at_its_end() {
    let mut board = long_with(1, Clock::manual());
    board.code(&[0xfb, 0xf4, 0x90]);
    board.engine.send_message(0xfee0_0000, 0xc000 | 0x51);
    assert_eq!(board.run_to_handler().0, 0x51);
    board.write(HANDLERS + 0x510, &apic_write(0x0b, 0));
    board.step();
    board.step();
    assert_eq!(*board.ports.ended.lock().unwrap(), [0x51]);
}

#[test]
fn kvm_pv_eoi_ends_an_interrupt_without_a_write() {
    let mut board = long_with(1, Clock::manual());
    board.change(|s| s.paravirt.pv_eoi = DATA | 1);
    board.code(&[0xfb, 0x90, 0x90, 0x90, 0x90]);
    board.engine.send_message(0xfee0_0000, 0x51);
    assert_eq!(board.run_to_handler().0, 0x51);
    assert_eq!(board.word(DATA) & 1, 1, "the offer");
    // The guest takes it; what is saved then knows.
    board.set(DATA, 0);
    assert_eq!(board.state().apic.isr, [0; 8]);
    // A second one can be delivered.
    board.engine.send_message(0xfee0_0000, 0x51);
    board.change(|s| s.rflags |= x86::Rflags::IF);
    let state = board.run_to(&[HANDLERS + 0x511]);
    assert_eq!(state.apic.isr[2], 1 << 0x11);
}

#[test]
fn kvm_clock_shows_machine_time_from_the_tsc() {
    let mut board = Board::long(0);
    board.clock.advance(123_456_789);
    board.code(&[0x0f, 0x30, 0x0f, 0x31]);
    board.change(|s| {
        s.gpr[1] = msr::KVM_SYSTEM_TIME.into();
        s.gpr[0] = DATA | 1;
        s.gpr[2] = 0;
        s.tsc_offset = 1 << 40;
    });
    board.step();
    board.clock.advance(1_000_000_007);
    let state = board.step();
    let tsc = state.gpr[0] | state.gpr[2] << 32;
    assert_eq!(board.double(DATA) % 2, 0, "the version is even");
    let (timestamp, system_time) = (board.word(DATA + 8), board.word(DATA + 16));
    let multiplier = u128::from(board.double(DATA + 24));
    let shift = board.word(DATA + 28) as i8;
    assert!(shift >= 0);
    let delta = u128::from(tsc.wrapping_sub(timestamp)) << shift;
    let nanos = ((delta * multiplier) >> 32) as u64 + system_time;
    assert!(
        nanos.abs_diff(board.clock.now()) <= 2,
        "{nanos} for {}",
        board.clock.now()
    );
    assert_eq!(board.word(DATA + 29) & 1, 1, "stable");
}

#[test]
fn sdm_10_1_3_self_modifying_code_runs_as_written() {
    let mut board = Board::long(0);
    // mov byte [rip + 1], 0x05 (the immediate of the next instruction); mov al, 0; nop; twice
    let code = [0xc6, 0x05, 0x01, 0, 0, 0, 0x05, 0xb0, 0x00, 0x90];
    board.code(&code);
    for _ in 0..2 {
        board.write(CODE, &code);
        board.change(|s| {
            s.rip = CODE;
            s.gpr[0] = 0;
        });
        assert_eq!(board.run_to(&[CODE + 9]).gpr[0], 5);
    }
}

#[test]
fn self_modifying_code_in_a_loop_runs_as_written() {
    let mut board = Board::long(0);
    // L: inc byte [rip + 1]; mov al, 0; add ah, al; dec ecx; jnz L; out 0x10, al; hlt
    board.code(&[
        0xfe, 0x05, 0x01, 0, 0, 0, 0xb0, 0x00, 0x00, 0xc4, 0xff, 0xc9, 0x75, 0xf2, 0xe6, 0x10, 0xf4,
    ]);
    board.change(|s| {
        s.gpr[0] = 0;
        s.gpr[1] = 10;
    });
    let engine = board.engine.clone();
    let ports = board.ports.clone();
    let stopper = std::thread::spawn(move || {
        while ports.writes.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        engine.kick(0);
    });
    assert_eq!(board.run(), Exit::Kicked);
    stopper.join().unwrap();
    assert_eq!(board.state().gpr[0] & 0xffff, 55 << 8 | 10);
}

#[test]
fn a_saved_vcpu_goes_on_in_another_engine() {
    let mut board = Board::long(0);
    // L: inc rax; jmp L
    board.code(&[0x48, 0xff, 0xc0, 0xeb, 0xfb]);
    board.step();
    let state = board.step();
    let mut other = Board::long(0);
    other.code(&[0x48, 0xff, 0xc0, 0xeb, 0xfb]);
    other.set_state(&state);
    assert_eq!(other.state(), state);
    assert_eq!(other.step().gpr[0], state.gpr[0] + 1);
}

/// A second vCPU in the state of the first, but for its local APIC.
fn take_second(board: &mut Board, rip: u64) -> crate::InterpreterVcpu {
    let mut second = board.vcpus.pop().unwrap();
    let mut state = board.state();
    state.apic = second.state().apic;
    state.rip = rip;
    second.set_state(&state).unwrap();
    second
}

#[test]
fn sdm_10_1_3_code_that_another_processor_modifies_is_run_as_written() {
    const OTHER: u64 = 0xc000;
    const ROUNDS: u64 = 2000;
    let mut board = long_with(2, host_clock());
    // L: mov al, 0; mov [DATA], al; jmp L
    let other = [0xb0, 0, 0x88, 0x04, 0x25, 0x00, 0x90, 0, 0, 0xeb, 0xf5];
    board.write(OTHER, &other);
    // L: inc byte [rbx + 1]; mov dl, [rbx + 1]; W: pause; cmp [DATA], dl; jnz W; dec ecx; jnz L;
    // out 0x10, al; hlt
    board.code(&[
        0xfe, 0x43, 0x01, 0x8a, 0x53, 0x01, 0xf3, 0x90, 0x38, 0x14, 0x25, 0x00, 0x90, 0, 0, 0x75,
        0xf5, 0xff, 0xc9, 0x75, 0xeb, 0xe6, 0x10, 0xf4,
    ]);
    board.change(|s| {
        s.gpr[1] = ROUNDS;
        s.gpr[3] = OTHER;
    });
    let mut second = take_second(&mut board, OTHER);
    let platform: Arc<dyn Platform> = board.ports.clone();
    let runs = std::thread::spawn(move || second.run(&platform));
    let (engine, ports) = (board.engine.clone(), board.ports.clone());
    let stopper = std::thread::spawn(move || {
        while ports.writes.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        engine.kick(0);
        engine.kick(1);
    });
    assert_eq!(board.run(), Exit::Kicked);
    stopper.join().unwrap();
    assert_eq!(runs.join().unwrap(), Exit::Kicked);
    assert_eq!(board.state().gpr[1], 0);
}

#[test]
fn an_instruction_that_ends_outside_of_memory_is_fetched_each_time() {
    let mut board = Board::long(0);
    const CROSSING: u64 = 0xdfff;
    const SECOND: u64 = 0xa000;
    // ret imm16, whose immediate is in the next page: of a device, which reads as ones; later in
    // memory.
    board.write(CROSSING, &[0xc2]);
    board.write(0xf000, &[0x10, 0]);
    let entry = PAGE_TABLE + 8 * 0xe;
    board.set(entry, 0x0800_0007);
    board.set(STACK, CODE + 0x10);
    board.set(SECOND, CODE + 0x40);
    // jmp rax; later: mov esp, SECOND; mov [rcx], rdx; invlpg [rbx]; jmp rax
    board.write(CODE, &[0xff, 0xe0]);
    board.write(
        CODE + 0x10,
        &[
            0xbc, 0x00, 0xa0, 0, 0, 0x48, 0x89, 0x11, 0x0f, 0x01, 0x3b, 0xff, 0xe0,
        ],
    );
    board.change(|s| {
        s.gpr[0] = CROSSING;
        s.gpr[1] = entry;
        s.gpr[2] = 0xf007;
        s.gpr[3] = 0xe000;
    });
    let state = board.run_to(&[CODE + 0x10]);
    assert_eq!(state.gpr[4], STACK + 8 + 0xffff);
    let state = board.run_to(&[CODE + 0x40]);
    assert_eq!(state.gpr[4], SECOND + 8 + 0x10);
}

/// Answers as another vCPU begins to decode code from the page of [`DATA`].
struct Decoder(Arc<memory::GuestMemory>);

impl Platform for Decoder {
    fn access(&self, _: engine::Access) -> u64 {
        self.0.watch().watch((DATA >> 12) as usize);
        0x5a
    }

    fn end_of_interrupt(&self, _: u8) {}

    fn acknowledge_external(&self) -> u8 {
        0
    }
}

#[test]
fn ins_into_a_page_that_became_code_meanwhile_is_seen() {
    let mut board = Board::long(0);
    // insb; nop
    board.code(&[0x6c, 0x90]);
    board.change(|s| s.gpr[7] = DATA);
    let platform: Arc<dyn Platform> = Arc::new(Decoder(board.memory.clone()));
    board.vcpus[0].set_debug(&engine::DebugRequest {
        single_step: true,
        ..engine::DebugRequest::default()
    });
    let exit = board.vcpus[0].run(&platform);
    assert_eq!(exit, Exit::Debug(engine::Stop::Step));
    assert_eq!(board.word(DATA) & 0xff, 0x5a);
    assert!(!board.memory.watch().is_watched((DATA >> 12) as usize));
}
