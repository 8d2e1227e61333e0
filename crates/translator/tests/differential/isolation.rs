//! Guest code that computes every kind of address sees what the interpreter says, and never the
//! monitor's memory: that of this very process, whose mappings it tries one by one.

use crate::compare::differences;
use crate::generator::{Family, Generated};
use crate::layout::*;
use crate::machine::{Create, End, Outcome, interpreter, translator, windows};
use crate::program::{Link, Piece, Program, ins};
use crate::random::Random;
use crate::scene::Window;
use crate::tables::{PRESENT, USER, WRITABLE};
use crate::trial::{Pair, Trial};
use iced_x86::Register;
use std::hint::black_box;
use std::ops::Range;

/// Addresses that one program tries. Each raises up to 36 exceptions, and their log has room for 256.
const ADDRESSES: usize = 6;
/// What the monitor's own page is full of.
const SECRET: u64 = 0x5ec2_e7b1_0c4a_9d3f;

/// Where jails have what is their own, as the translator's documentation says.
const JAILS: Range<u64> = 0x2000_0000_0000..0x5000_0000_0000;

/// A page of this process that no guest may see or change.
#[repr(align(4096))]
struct Canary([u64; 512]);

/// Where this process has something: the beginning of each mapping and the address behind it.
fn mappings() -> Vec<(u64, u64)> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the mappings of this process");
    let ranges = maps.lines().filter_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let end = rest.split(' ').next()?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(end)?))
    });
    ranges.collect()
}

/// Addresses to try in `trial`'s scene, in random order. `ram` is where the host has guest memory.
fn addresses(trial: &Trial, canary: u64, ram: u64, random: &mut Random) -> Vec<u64> {
    let mut found = vec![
        0,
        1,
        0x7fff_ffff_ffff,
        0x8000_0000_0000,
        0x8000_0000_0000 - 3,
        0xffff_7fff_ffff_fff9,
        0xffff_7fff_ffff_ffff,
        0xffff_8000_0000_0000,
        1 << 63,
        (1 << 63) - 1,
        u64::MAX,
        u64::MAX - 7,
        u64::MAX - 15,
        0xffff_ffff,
        0xffff_fffd,
        0x1_0000_0000,
        0x1234_5678_9abc_def0,
        canary,
        canary + 8,
        canary - 4,
    ];
    for (start, end) in mappings() {
        // A jail has things of its own among the guest's addresses. It may harm itself with them,
        // which no other engine does.
        if JAILS.contains(&start) {
            continue;
        }
        let middle = start + (end - start) / 2;
        found.extend([start, middle, end - 8, start.wrapping_sub(4), end]);
    }
    // The ends of pages, and what an engine may take for them: the same index in some table.
    let windows = &trial.scene.windows;
    for window in windows {
        for n in 0..=window.pages.len() as u64 {
            let page = window.linear.wrapping_add(PAGE * n);
            found.extend([page, page.wrapping_sub(1 + random.below(16))]);
            let other = 1 << (12 + random.below(52));
            found.extend([page ^ other, page.wrapping_add(other).wrapping_sub(2)]);
            found.push(page ^ 1 << 48 ^ 1 << 63);
            // Those that share entries of the translator's TLB, and of its second level.
            for other in [1 << 24, 1 << 28] {
                found.extend([page ^ other, page.wrapping_add(other).wrapping_sub(3)]);
            }
        }
    }
    // What is behind, before and far from guest memory, if addresses are only moved by what makes a
    // good one a host address.
    let good = windows[1].linear.wrapping_sub(ram + last_frame_offset());
    let ends = [ram, ram + PROGRAM_MEMORY_BYTES + SYSTEM_BYTES, canary];
    found.extend(ends.map(|host| host.wrapping_add(good)));
    found.extend(ends.map(|host| host.wrapping_add(good).wrapping_sub(4)));
    if trial.scene.mode.bits() == 32 {
        found.iter_mut().for_each(|address| *address &= 0xffff_ffff);
    }
    found.retain(|&address| !is_needed(trial.scene.mode, address));
    random.shuffle(&mut found);
    found
}

/// Where the last page of memory is, from its beginning on the host.
fn last_frame_offset() -> u64 {
    SYSTEM_BYTES + PROGRAM_MEMORY_BYTES - PAGE
}

/// Whether the program would break what it needs by writing at `address` or a little behind it.
fn is_needed(mode: Mode, address: u64) -> bool {
    let places = [
        (mode.code(), CODE_PAGES * PAGE, true),
        (mode.code_alias(), CODE_PAGES * PAGE, true),
        (mode.control(CONTROL), PAGE, true),
        (mode.system(0), SYSTEM_BYTES, !mode.is_user()),
        (mode.apic(), PAGE, !mode.is_user()),
    ];
    places.iter().any(|&(start, bytes, mapped)| {
        mapped && address.wrapping_sub(start - 0x1_0000) < bytes + 0x1_0000
    })
}

/// Guest code in the making.
struct Attack {
    program: Program,
    mode: Mode,
    stack: u64,
}

impl Attack {
    fn wide(&self, register: Register) -> Register {
        match self.program.bits {
            64 => register,
            _ => Register::EAX + (register as u32 - Register::RAX as u32),
        }
    }

    fn set(&mut self, register: Register, value: u64) {
        let register = self.wide(register);
        self.program.add(ins::set(register, value));
    }

    /// An instruction for 64 and 32 bits; `wide` has a REX.W prefix in 64-bit code.
    fn code(&mut self, wide: bool, bytes: &[u8]) {
        let mut all = Vec::new();
        // Prefixes come before REX.
        let prefixes = bytes
            .iter()
            .take_while(|b| [0xf0, 0xf2, 0xf3, 0x66].contains(b));
        let prefixes = prefixes.count();
        all.extend(&bytes[..prefixes]);
        if wide && self.program.bits == 64 {
            all.push(0x48);
        }
        all.extend(&bytes[prefixes..]);
        self.program.bytes(&all);
    }

    /// Every kind of access to `address`, with other ones to `good` among them.
    fn on(&mut self, address: u64, good: u64, random: &mut Random) {
        self.data(address, good);
        self.strings(address, good, random);
        self.bit_strings(address, good);
        if self.mode != Mode::Kernel32 {
            self.stack(address);
        }
    }

    fn data(&mut self, address: u64, good: u64) {
        use Register as R;
        self.set(R::RSI, good);
        self.code(true, &[0x8b, 0x06]); // mov rax, [rsi]
        self.code(true, &[0x89, 0x06]); // mov [rsi], rax
        self.set(R::RBX, address);
        self.code(true, &[0x8b, 0x03]); // mov rax, [rbx]
        self.code(true, &[0x31, 0xc9]); // xor rcx, rcx
        self.code(false, &[0xf9]); // stc
        self.code(true, &[0x8b, 0x13]); // mov rdx, [rbx], with flags that are used
        self.code(false, &[0x88, 0x0b]); // mov [rbx], cl
        self.code(true, &[0x89, 0x0b]); // mov [rbx], rcx
        self.code(true, &[0x19, 0xff]); // sbb rdi, rdi
        self.code(false, &[0xf0, 0x01, 0x03]); // lock add [rbx], eax
        self.code(true, &[0x87, 0x03]); // xchg [rbx], rax
        self.code(true, &[0x8b, 0x43, 0x08]); // mov rax, [rbx + 8]
        self.code(true, &[0x89, 0x43, 0x7f]); // mov [rbx + 127], rax
        self.code(true, &[0x8b, 0x83, 0xff, 0xff, 0xff, 0x7f]); // mov rax, [rbx + 7fffffff]
        self.code(true, &[0x8b, 0x44, 0xdb, 0x80]); // mov rax, [rbx + 8 * rbx - 128]
        self.code(false, &[0x0f, 0x10, 0x0b]); // movups xmm1, [rbx]
        self.code(false, &[0x0f, 0x11, 0x0b]); // movups [rbx], xmm1
        self.code(false, &[0xc5, 0xfc, 0x10, 0x13]); // vmovups ymm2, [rbx]
        self.code(false, &[0xc5, 0xfc, 0x11, 0x13]); // vmovups [rbx], ymm2
    }

    /// STOS and MOVS whose counts are beyond everything, and overflow when they are scaled.
    fn strings(&mut self, address: u64, good: u64, random: &mut Random) {
        use Register as R;
        const COUNTS: [u64; 8] = [1, 0x1ff, 0xfff, 0x1001, 1 << 32, 1 << 61, 1 << 63, u64::MAX];
        self.set(R::RCX, random.one_of(&COUNTS));
        self.set(R::RDI, address);
        self.code(true, &[0xf3, 0xab]); // rep stosq
        self.set(R::RCX, random.one_of(&COUNTS));
        self.set(R::RSI, good);
        self.set(R::RDI, address);
        self.code(true, &[0xf3, 0xa5]); // rep movsq
        self.set(R::RCX, random.one_of(&COUNTS));
        self.set(R::RSI, address);
        self.set(R::RDI, good);
        self.code(false, &[0xf3, 0xa4]); // rep movsb
        self.set(R::RCX, random.one_of(&COUNTS));
        self.set(R::RDI, good + 8);
        self.code(true, &[0xf3, 0xab]); // rep stosq
    }

    /// Bit strings that begin at a good address and whose bit is at `address`.
    fn bit_strings(&mut self, address: u64, good: u64) {
        use Register as R;
        self.set(R::RBX, good);
        self.set(R::RCX, address.wrapping_sub(good).wrapping_mul(8));
        self.code(true, &[0x0f, 0xa3, 0x0b]); // bt [rbx], rcx
        self.code(true, &[0x0f, 0xab, 0x0b]); // bts [rbx], rcx
        self.code(false, &[0x0f, 0xbb, 0x0b]); // btc [rbx], ecx
        self.set(R::RCX, 1 << 63);
        self.code(true, &[0x0f, 0xb3, 0x0b]); // btr [rbx], rcx
    }

    fn stack(&mut self, address: u64) {
        use Register as R;
        self.set(R::RSP, address);
        self.code(false, &[0x50]); // push rax
        self.set(R::RSP, address);
        self.code(false, &[0x59]); // pop rcx
        self.set(R::RBP, address);
        self.code(false, &[0xc9]); // leave
        self.set(R::RSP, self.stack);
    }

    /// Jumps, calls and returns to `address`.
    fn execute(&mut self, address: u64) {
        use Register as R;
        for kind in 0..3 {
            let back = self.program.label();
            let wide = self.wide(R::RBP);
            let recovery = ins::absolute(self.program.bits, self.mode.control(RECOVERY));
            let to_back = ins::set(wide, 0);
            self.program
                .push(Piece::Linked(to_back, Link::Immediate(0), back));
            self.program.add(ins::store(recovery, wide));
            self.set(R::RBX, address);
            match kind {
                0 => self.code(false, &[0xff, 0xe3]), // jmp rbx
                1 => self.code(false, &[0xff, 0xd3]), // call rbx
                _ => {
                    self.code(false, &[0x53]); // push rbx
                    self.code(false, &[0xc3]); // ret
                }
            }
            self.program.mark(back);
            // A CALL that raises #GP may have written its return address, below the stack.
            self.set(R::RSP, self.stack);
            self.code(true, &[0x89, 0x5c, 0x24, 0xf8]); // mov [rsp - 8], rbx
        }
    }
}

/// Whether `outcome` has the canary's contents in it.
fn has_secret(outcome: &Outcome) -> bool {
    let secret = SECRET.to_le_bytes();
    let seen = |memory: &[u8]| memory.windows(8).any(|word| word == secret);
    let in_registers = outcome.state.gpr.contains(&SECRET)
        || outcome
            .state
            .fpu
            .ymm
            .iter()
            .flatten()
            .any(|word| *word == SECRET);
    in_registers || seen(&outcome.lower) || seen(&outcome.upper)
}

/// The trial of `seed` with a scene in which the last page of memory is behind some pages, each of
/// which has nothing, or another one, behind it.
fn trial(mode: Mode, seed: u64) -> Trial {
    const LAST: u64 = PROGRAM_MEMORY + PROGRAM_MEMORY_BYTES - PAGE;
    // Not one in which that page is code or stack.
    let mut trials = (0..).map(|n| Trial::random(mode, seed << 8 | n, &Family::ALL));
    let mut trial = trials
        .find(|trial| trial.scene.is_data(LAST))
        .expect("most are");
    let scene = &mut trial.scene;
    scene.own_fault_stack = mode.is_long();
    scene.large = None;
    let own = if mode.is_user() { USER } else { 0 };
    for (n, page) in scene.windows[1].pages.iter_mut().enumerate() {
        match n % 4 {
            0 => page.flags &= !PRESENT,
            1 | 2 => {
                page.gpa = LAST;
                page.flags = PRESENT | WRITABLE | own;
            }
            _ => {}
        }
    }
    trial
}

fn attack(tested: Create, mode: Mode, seeds: u64) {
    let canary = Box::new(Canary([SECRET; 512]));
    let at = black_box(&raw const *canary) as u64;
    let mut pair = Pair::new(tested, interpreter);
    let mut left: Vec<u64> = Vec::new();
    let mut events = 0;
    for seed in 0..seeds {
        let mut random = Random::new(seed << 8 | mode as u64);
        let mut trial = trial(mode, seed);
        if left.len() < ADDRESSES {
            left = addresses(&trial, at, pair.ram_address(), &mut random);
        }
        let mut attack = Attack {
            program: Program::new(mode.bits()),
            mode,
            stack: trial.scene.stack_top(),
        };
        // Pages 1 and 2 of the window are the last of memory.
        let good = trial.scene.windows[1].linear + PAGE + random.below(PAGE) / 8 * 8;
        for address in left.split_off(left.len() - ADDRESSES) {
            attack.on(address, good, &mut random);
            // In a window there may be code, of any kind.
            let window = |w: &Window| address.wrapping_sub(w.linear) < PAGE * w.pages.len() as u64;
            if !trial.scene.windows.iter().any(window) {
                attack.execute(address);
            }
        }
        attack.program.bytes(&[0xcd, END_VECTOR]);
        trial.generated = Generated {
            program: attack.program,
            offset: random.below(0x800),
        };
        let outcomes = pair.outcomes(&trial, &trial.generated.program);
        let [ours, theirs] = outcomes.expect("the program is short");
        let found = differences(&trial.scene, &ours, &theirs);
        if !found.is_empty() {
            let report = pair.check(&trial).err();
            panic!("{}", report.unwrap_or_else(|| found.join("\n")));
        }
        assert_eq!(ours.end, End::Reached, "{mode:?}, seed {seed}");
        assert!(!has_secret(&ours), "{mode:?}, seed {seed}: a secret is out");
        assert!(
            canary.0.iter().all(|word| *word == SECRET),
            "{mode:?}, seed {seed}: the monitor's memory was changed"
        );
        events += ours.events(mode);
    }
    assert!(
        events > 50 * seeds,
        "only {events} exceptions in {seeds} programs"
    );
}

/// Strings that go on at address 0 behind the end of the address space, in machines that have not
/// accessed anything else there.
fn strings_over_the_end(tested: Create, mode: Mode) {
    use Register as R;
    for (seed, (before, count)) in [(8, 2), (0x7f8, 0x1ff), (0x1000, 0xfff)]
        .into_iter()
        .enumerate()
    {
        let mut trial = trial(mode, seed as u64);
        let own = if mode.is_user() { USER } else { 0 };
        let windows = &mut trial.scene.windows;
        let [first, .., last] = &mut windows[..] else {
            unreachable!("there are more");
        };
        assert_eq!(
            (first.linear, last.linear),
            (0, 0u64.wrapping_sub(3 * PAGE))
        );
        // The end may be written, the beginning may not.
        last.pages[2].flags = PRESENT | WRITABLE | own;
        first.pages[0].flags = PRESENT | own;
        let good = windows[1].linear + PAGE;
        let mut attack = Attack {
            program: Program::new(mode.bits()),
            mode,
            stack: trial.scene.stack_top(),
        };
        for code in [0xa5, 0xab] {
            attack.set(R::RCX, count);
            attack.set(R::RSI, good);
            attack.code(true, &[0x8b, 0x06]); // mov rax, [rsi]
            attack.set(R::RDI, 0u64.wrapping_sub(before));
            attack.code(true, &[0xf3, code]); // rep movsq, rep stosq
        }
        attack.program.bytes(&[0xcd, END_VECTOR]);
        trial.generated = Generated {
            program: attack.program,
            offset: 0,
        };
        if let Err(report) = Pair::new(tested, interpreter).check(&trial) {
            panic!("{report}");
        }
    }
}

#[test]
fn strings_of_kernel_code_over_the_end() {
    strings_over_the_end(translator, Mode::Kernel64);
}

#[test]
fn strings_of_user_code_over_the_end() {
    strings_over_the_end(translator, Mode::User64);
}

#[test]
fn kernel_code() {
    attack(translator, Mode::Kernel64, 120);
}

#[test]
fn user_code() {
    attack(translator, Mode::User64, 120);
}

#[test]
fn user_code_in_windows() {
    attack(windows, Mode::User64, 120);
}

#[test]
fn user_code_of_32_bits() {
    attack(translator, Mode::Compatibility, 60);
}

#[test]
fn kernel_code_of_a_32_bit_system() {
    attack(translator, Mode::Kernel32, 60);
}
