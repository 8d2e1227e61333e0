//! User code in jails that is interrupted, all the time and everywhere.

use crate::code::Code;
use crate::guest::{End, Guest, PAGE, USER};
use engine::Engine;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use translator::{Options, When};

/// The program, its data and its stack: where they are, too far up for addresses of 32 bits, and
/// guest-physical.
const LINEAR: u64 = 0x5555_5555_4000;
const PROGRAM: u64 = 0x11_0000;
const DATA: u64 = PAGE;
const STACK: u64 = 2 * PAGE;
const ROUNDS: u32 = 1_500_000;
/// In each round, there is a loop of so many rounds without an indirect jump.
const INNER: u8 = 100;

const JNE: &[u8] = &[0x0f, 0x85];
const CALL: &[u8] = &[0xe8];
/// `lea rdx, [rip + ...]`
const LEA_RDX: &[u8] = &[0x48, 0x8d, 0x15];

/// A program that counts to [`ROUNDS`] in RAX, RBX, R8, R9, and [`INNER`] times as far in memory
/// relative to RIP, by way of calls, returns and indirect jumps. It ends with 0 if all counted so
/// far.
fn program() -> Vec<u8> {
    // again: inc rax; mov ecx, INNER; loop: add qword [rip + data], 1; dec ecx; jne loop
    let code = Code::new()
        .label("again")
        .raw(&[0x48, 0xff, 0xc0, 0xb9, INNER, 0, 0, 0])
        .label("loop")
        .raw(&[0x48, 0x83, 0x05])
        .raw(&(DATA as u32 - 16).to_le_bytes())
        .raw(&[1, 0xff, 0xc9])
        .branch(JNE, "loop");
    code.branch(CALL, "inner")
        // lea rdx, [rip + there]; jmp rdx; ud2
        .branch(LEA_RDX, "there")
        .raw(&[0xff, 0xe2, 0x0f, 0x0b])
        .label("there")
        // inc r8; call [rsi], which is to `other`; jrcxz +2; ud2
        .raw(&[0x49, 0xff, 0xc0, 0xff, 0x16])
        .raw(&[0xe3, 2, 0x0f, 0x0b])
        // cmp eax, ROUNDS; jne again
        .raw(&[0x3d])
        .raw(&ROUNDS.to_le_bytes())
        .branch(JNE, "again")
        // cmp rbx, rax; jne bad and so on, with r8 and r9
        .raw(&[0x48, 0x39, 0xc3])
        .branch(JNE, "bad")
        .raw(&[0x49, 0x39, 0xc0])
        .branch(JNE, "bad")
        .raw(&[0x49, 0x39, 0xc1])
        .branch(JNE, "bad")
        // imul rax, rax, INNER; cmp [rsi - 8], rax
        .raw(&[0x48, 0x6b, 0xc0, INNER, 0x48, 0x39, 0x46, 0xf8])
        .branch(JNE, "bad")
        .end(0)
        .label("bad")
        .end(1)
        .fill_to(OTHER, 0xcc)
        // inc r9; ret
        .raw(&[0x49, 0xff, 0xc1, 0xc3])
        .label("inner")
        // inc rbx; ret
        .raw(&[0x48, 0xff, 0xc3, 0xc3])
        .finish()
}

/// Where a function of the program is.
const OTHER: usize = 0x400;

#[test]
fn interrupts_change_nothing() {
    let options = Options {
        windows: When::Always,
        ..Options::default()
    };
    let mut guest = Guest::with(1, &options);
    let space = guest.space();
    guest.write(PROGRAM, &program());
    guest.write(PROGRAM + DATA + 8, &(LINEAR + OTHER as u64).to_le_bytes());
    for page in [0, DATA, STACK] {
        guest.map(space, LINEAR + page, PROGRAM + page, USER);
    }
    guest.start(0, space, 3, LINEAR);
    guest.change(0, |state| {
        state.gpr[4] = LINEAR + STACK + 0x800;
        state.gpr[6] = LINEAR + DATA + 8;
    });
    let engine = guest.engine.clone();
    let ended = AtomicBool::new(false);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The program does not let interrupts in, but somebody has to look.
            let mut high = true;
            while !ended.load(Ordering::Relaxed) {
                engine.set_external_interrupt(high);
                high = !high;
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let end = guest.run();
        ended.store(true, Ordering::Relaxed);
        assert_eq!(end, End::Result(0));
    });
    assert_eq!(guest.count(0, "windows: processes that broke"), 0);
    let looks = guest.count(0, "events: looks at requests and timers");
    assert!(looks > 100, "{looks} interrupts in {:?}", begin.elapsed());
    let amiss = guest.count(0, "windows: stops by a signal, amiss");
    assert!(amiss > 0, "none of {looks} was inside of an instruction");
}
