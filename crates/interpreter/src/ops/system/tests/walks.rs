//! SDM vol. 3, 5.10.3: what the paging-structure caches may answer, and what a walk costs.

use super::board::{Board, CODE, TABLES};
use crate::InterpreterVcpu;
use crate::testing::Random;
use clock::Clock;
use engine::Vcpu;
use std::time::Instant;
use x86::{Cr0, Cr4, Efer};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;
/// What page-table entries of a board are made of.
const OPEN: u64 = PRESENT | WRITABLE | USER;
const ACCESSED: u64 = 0x20;
const ACCESSED_DIRTY: u64 = 0x60;
const LARGE: u64 = 0x80;

/// The page directory of a board, its entry for the second 2 MiB, and two page tables for it.
const DIRECTORY: u64 = TABLES + 0x2000;
const ENTRY: u64 = DIRECTORY + 8;
const OLD: u64 = 0x20000;
const NEW: u64 = 0x21000;

/// Page `n` of the second 2 MiB of linear addresses.
const fn page(n: u64) -> u64 {
    (2 << 20) + (n << 12)
}

/// Where page `n` is by the tables [`OLD`] and [`NEW`].
const fn old(n: u64) -> Option<usize> {
    Some((1 << 20) + (n as usize) * 0x1000)
}

const fn new(n: u64) -> Option<usize> {
    Some((3 << 20) + (n as usize) * 0x1000)
}

/// Fills both tables; [`OLD`] is the one that is mapped.
fn map(board: &Board) {
    for n in 0..16 {
        board.set(OLD + 8 * n, old(n).unwrap() as u64 | OPEN);
        board.set(NEW + 8 * n, new(n).unwrap() as u64 | OPEN);
    }
    board.set(ENTRY, OLD | OPEN);
}

/// A vCPU at CPL 0 with both tables.
fn board() -> Board {
    let board = Board::long(0);
    map(&board);
    board
}

fn read(vcpu: &mut InterpreterVcpu, linear: u64) -> Option<usize> {
    vcpu.data_page(linear, false).map(|page| page.offset)
}

fn write(vcpu: &mut InterpreterVcpu, linear: u64) -> Option<usize> {
    vcpu.data_page(linear, true).map(|page| page.offset)
}

impl Board {
    /// Executes `code` with `value` in RAX and `at` in RBX.
    fn execute(&mut self, code: &[u8], value: u64, at: u64) {
        self.code(code);
        let vcpu = &mut self.vcpus[0];
        (vcpu.gpr_mut()[0], vcpu.gpr_mut()[3]) = (value, at);
        vcpu.set_rip(CODE);
        assert_eq!(self.step().rip, CODE + code.len() as u64);
    }

    fn invlpg(&mut self, at: u64) {
        self.execute(&[0x0f, 0x01, 0x3b], 0, at);
    }
}

#[test]
fn sdm_5_10_4_1_a_changed_directory_entry_counts_for_all_pages_after_invlpg_of_one() {
    let mut board = board();
    assert_eq!(read(&mut board.vcpus[0], page(0)), old(0));
    board.set(ENTRY, NEW | OPEN);
    // SDM vol. 3, 5.10.2.3 and 5.10.3.2: both may be stale.
    assert_eq!(read(&mut board.vcpus[0], page(0)), old(0));
    assert_eq!(read(&mut board.vcpus[0], page(1)), old(1));
    board.invlpg(page(0));
    for n in [0, 2, 3] {
        assert_eq!(read(&mut board.vcpus[0], page(n)), new(n), "{n}");
    }
}

#[test]
fn sdm_5_10_4_1_invlpg_anywhere_and_mov_to_cr3_forget_all_structures() {
    let forget: [fn(&mut Board); 3] = [
        |board| board.invlpg(0x7fff_ffff_f000),
        // mov cr3, rax
        |board| board.execute(&[0x0f, 0x22, 0xd8], TABLES, 0),
        // invpcid rax, [rbx]: all contexts
        |board| board.execute(&[0x66, 0x0f, 0x38, 0x82, 0x03], 2, 0x9000),
    ];
    for (case, forget) in forget.into_iter().enumerate() {
        let mut board = board();
        assert_eq!(read(&mut board.vcpus[0], page(0)), old(0));
        board.set(ENTRY, NEW | OPEN);
        forget(&mut board);
        assert_eq!(read(&mut board.vcpus[0], page(1)), new(1), "{case}");
        // The directory too: another that maps the same table, and nothing else.
        let other = 0x22000;
        board.set(TABLES + 0x1000, other | OPEN);
        board.set(other, (TABLES + 0x3000) | OPEN);
        board.set(other + 8, OLD | OPEN);
        forget(&mut board);
        assert_eq!(read(&mut board.vcpus[0], page(2)), old(2), "{case}");
    }
}

#[test]
fn sdm_5_10_3_each_processor_has_its_own() {
    let mut board = Board::with(2, Clock::manual()).in_long_mode(0);
    map(&board);
    let mut state = board.state();
    state.apic = board.vcpus[1].state().apic;
    board.vcpus[1].set_state(&state).unwrap();
    for vcpu in &mut board.vcpus {
        assert_eq!(read(vcpu, page(0)), old(0));
    }
    board.set(ENTRY, NEW | OPEN);
    board.invlpg(page(0));
    assert_eq!(read(&mut board.vcpus[0], page(1)), new(1));
    assert_eq!(read(&mut board.vcpus[1], page(1)), old(1), "not yet told");
    board.vcpus.swap(0, 1);
    board.invlpg(page(0));
    assert_eq!(read(&mut board.vcpus[0], page(2)), new(2));
}

#[test]
fn sdm_5_10_4_3_what_is_stale_permits_but_never_forbids() {
    let mut board = board();
    board.set(ENTRY, OLD | OPEN & !WRITABLE);
    assert_eq!(read(&mut board.vcpus[0], page(0)), old(0));
    assert_eq!(write(&mut board.vcpus[0], page(0)), None);
    assert_eq!(read(&mut board.vcpus[0], page(1)), old(1));
    board.set(ENTRY, OLD | OPEN);
    assert_eq!(write(&mut board.vcpus[0], page(0)), old(0));
    // A page that the old table has not.
    board.set(OLD + 8 * 5, 0);
    board.set(OLD + 8 * 6, OPEN | 1 << 50);
    board.set(ENTRY, NEW | OPEN);
    for n in [5, 6] {
        assert_eq!(read(&mut board.vcpus[0], page(n)), new(n), "{n}");
    }
}

#[test]
fn sdm_5_10_4_1_a_page_fault_forgets_the_structures_for_its_address() {
    let mut board = board();
    assert_eq!(read(&mut board.vcpus[0], page(0)), old(0));
    board.set(ENTRY, NEW | OPEN);
    for table in [OLD, NEW] {
        board.set(table + 8 * 5, 0);
    }
    assert_eq!(read(&mut board.vcpus[0], page(5)), None);
    assert_eq!(read(&mut board.vcpus[0], page(1)), new(1));
}

#[test]
fn sdm_5_8_tables_are_marked_before_they_are_cached() {
    let mut board = board();
    assert_eq!(read(&mut board.vcpus[0], page(0)), old(0));
    assert_eq!(board.word(ENTRY) & ACCESSED, ACCESSED);
    board.set(ENTRY, OLD | OPEN);
    assert_eq!(write(&mut board.vcpus[0], page(1)), old(1));
    assert_eq!(board.word(OLD + 8) & ACCESSED_DIRTY, ACCESSED_DIRTY);
    assert_eq!(board.word(ENTRY) & ACCESSED, 0, "cached");
    board.invlpg(page(0));
    assert_eq!(read(&mut board.vcpus[0], page(2)), old(2));
    assert_eq!(board.word(ENTRY) & ACCESSED, ACCESSED);
}

#[test]
fn sdm_5_6_1_rights_of_all_levels_count_when_the_upper_ones_are_cached() {
    // The entries for the second 512 GiB, 1 GiB and 2 MiB.
    let linear = (1 << 39) + (1 << 30) + page(0);
    let levels = [TABLES + 8, 0x22000 + 8, 0x23000 + 8];
    for bits in 0..512u64 {
        let mut board = board();
        let mut all = WRITABLE | USER;
        let mut no_execute = false;
        for (level, table) in [(0, 0x22000), (1, 0x23000), (2, OLD)] {
            let three = bits >> (3 * level) & 7;
            let rights = ((three & 3) * WRITABLE) | ((three >> 2) << 63);
            all &= rights;
            no_execute |= rights & NO_EXECUTE != 0;
            board.set(levels[level], table | PRESENT | rights);
        }
        let vcpu = &mut board.vcpus[0];
        // CPL 0 may read whatever is present: now all is cached.
        assert_eq!(read(vcpu, linear), old(0));
        assert!(vcpu.cpu.tlb.structures.table(linear).is_some());
        assert!(vcpu.cpu.tlb.structures.directory(linear).is_some());
        let writable = all & WRITABLE != 0;
        for (n, cpl) in [(1, 0), (3, 3)] {
            vcpu.cpu.cpl = cpl;
            vcpu.cpu.update_view();
            // The code is fetched last: a fault makes the walk begin at CR3 again.
            let allowed = cpl == 0 || all & USER != 0;
            let at = |n: u64| linear + (n << 12);
            let expect = |n, on: bool| old(n).filter(|_| on && allowed);
            assert_eq!(read(vcpu, at(n)), expect(n, true), "{bits:o}");
            assert_eq!(write(vcpu, at(n + 1)), expect(n + 1, writable), "{bits:o}");
            let code = vcpu.code_page(at(n)).map(|page| page.offset);
            assert_eq!(code, expect(n, !no_execute), "{bits:o}");
        }
    }
}

#[test]
fn sdm_5_3_and_5_4_tables_of_32_bit_formats_are_cached_too() {
    for pae in [false, true] {
        let mut board = Board::protected(0);
        let (entry_bytes, per_table) = if pae { (8, 512) } else { (4, 1024) };
        let put = |at: u64, value: u64| {
            if pae {
                board.set(at, value);
            } else {
                board.memory.store(at, value as u32).unwrap();
            }
        };
        // Backwards over the last MiB, from linear address 0 on.
        let place = |n: u64| (4 << 20) - 0x1000 - ((n % 256) << 12);
        let directory = if pae {
            board.set(TABLES, 0x22000 | PRESENT);
            0x22000
        } else {
            TABLES
        };
        for n in 0..2048 {
            let table = 0x30000 + ((n / per_table) << 12);
            put(directory + n / per_table * entry_bytes, table | OPEN);
            put(table + n % per_table * entry_bytes, place(n) | OPEN);
        }
        board.change(|s| {
            s.cr3 = TABLES;
            s.cr4.set(Cr4::PAE, pae);
            s.efer = Efer::empty();
            s.pdpte[0] = 0x22000 | PRESENT;
            s.cr0 |= Cr0::PG;
        });
        let vcpu = &mut board.vcpus[0];
        for n in 0..2048 {
            assert_eq!(read(vcpu, n << 12), Some(place(n) as usize), "{pae} {n}");
            assert!(vcpu.cpu.tlb.structures.table(n << 12).is_some());
        }
        assert_eq!(read(vcpu, 2048 << 12), None);
    }
}

/// Where [`spread`] maps its pages.
const BASE: u64 = 1 << 30;

/// How [`spread`] maps pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Kib4,
    Mib2,
}

/// A vCPU for which `bytes` (a multiple of 2 MiB) are mapped at [`BASE`], accessed and dirty.
fn spread(bytes: u64, size: Size) -> Board {
    const RAM: u64 = 4 << 20;
    let tables = RAM + bytes;
    let memory = tables + (8 << 20);
    let board = Board::with_memory(1, Clock::manual(), memory).in_long_mode(3);
    let directories = bytes.div_ceil(1 << 30);
    for n in 0..directories {
        let directory = tables + (n << 12);
        let entry = TABLES + 0x1000 + 8 * (n + 1);
        board.set(entry, directory | OPEN | ACCESSED_DIRTY);
    }
    for n in 0..bytes >> 21 {
        let table = tables + ((directories + n) << 12);
        let entry = match size {
            Size::Kib4 => table | OPEN | ACCESSED_DIRTY,
            Size::Mib2 => (RAM + (n << 21)) | OPEN | ACCESSED_DIRTY | LARGE,
        };
        board.set(tables + 8 * n, entry);
        for page in 0..512 {
            let at = RAM + (n << 21) + (page << 12);
            board.set(table + 8 * page, at | OPEN | ACCESSED_DIRTY);
        }
    }
    board
}

#[test]
#[ignore = "a measurement: what another engine pays for a page that its TLB has not"]
fn cost_of_a_miss() {
    const LOOKS: u32 = 1_000_000;
    for (mib, size, write) in [
        (64, Size::Kib4, false),
        (64, Size::Kib4, true),
        (1024, Size::Kib4, false),
        (1024, Size::Kib4, true),
        (1024, Size::Mib2, false),
    ] {
        let mut board = spread(mib << 20, size);
        let vcpu = &mut board.vcpus[0];
        let mut random = Random::new(1);
        let mut looks = |vcpu: &mut crate::InterpreterVcpu| {
            let (before, start) = (vcpu.cpu.tlb.misses, Instant::now());
            for _ in 0..LOOKS {
                let page = BASE + (random.below(mib << 8) << 12);
                assert!(vcpu.data_page(page, write).is_some());
            }
            let misses = vcpu.cpu.tlb.misses - before;
            start.elapsed().as_nanos() as f64 / misses as f64
        };
        // Of many rounds, the one that other processes disturb least.
        let least = (0..16).map(|_| looks(vcpu)).fold(f64::MAX, f64::min);
        eprintln!("{mib} MiB, {size:?}, write {write}: {least:.1} ns for each miss");
    }
}
