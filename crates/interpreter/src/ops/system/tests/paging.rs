//! SDM vol. 3, chapter 5: access rights.

use super::board::{
    Board, CODE, DATA, FREE, HANDLERS, PAGE_TABLE, STACK, TABLES, TYPE_CODE, flat32,
};
use engine::{Engine, Exit};
use x86::{Cr0, Cr4, Efer, Rflags};

const WRITABLE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Access {
    Read,
    Write,
    Fetch,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    user: bool,
    entry: u64,
    access: Access,
    write_protect: bool,
    smep: bool,
    smap: bool,
    ac: bool,
    no_execute: bool,
}

impl Case {
    /// SDM vol. 3, 5.6.1, sentence by sentence.
    fn is_allowed(&self) -> bool {
        let user_page = self.entry & USER != 0;
        let writable = self.entry & WRITABLE != 0;
        let executable = !(self.no_execute && self.entry & NO_EXECUTE != 0);
        if self.user {
            return user_page
                && match self.access {
                    Access::Read => true,
                    Access::Write => writable,
                    Access::Fetch => executable,
                };
        }
        let data = !user_page || !self.smap || self.ac;
        match self.access {
            Access::Read => data,
            Access::Write => data && (writable || !self.write_protect),
            Access::Fetch => executable && !(user_page && self.smep),
        }
    }

    fn error_code(&self) -> u64 {
        let fetch = self.access == Access::Fetch && (self.smep || self.no_execute);
        1 | u64::from(self.access == Access::Write) << 1
            | u64::from(self.user) << 2
            | u64::from(fetch) << 4
    }

    fn run(&self) {
        let mut board = Board::long(if self.user { 3 } else { 0 });
        let code: &[u8] = match self.access {
            Access::Read => &[0x8a, 0x03, 0x90],
            Access::Write => &[0x88, 0x03, 0x90],
            Access::Fetch => &[0xff, 0xe3],
        };
        board.code(code);
        board.write(DATA, &[0x90; 4]);
        let entry = self.entry
            & if self.no_execute {
                u64::MAX
            } else {
                !NO_EXECUTE
            };
        board.set(PAGE_TABLE + 8 * (DATA >> 12), DATA | 1 | entry);
        let code_bits = if self.user { 7 } else { 3 };
        // The kernel's own pages are supervisor pages, so that SMEP and SMAP leave them alone.
        for page in [1, 2, 3, 4, 6, 8, 10, 11] {
            let user = if self.user && page >= 8 {
                7
            } else {
                code_bits & 3
            };
            board.set(PAGE_TABLE + 8 * page, page << 12 | user);
        }
        board.change(|s| {
            s.gpr[3] = DATA;
            s.cr0.set(Cr0::WP, self.write_protect);
            s.cr4.set(Cr4::SMEP, self.smep);
            s.cr4.set(Cr4::SMAP, self.smap);
            s.efer.set(Efer::NXE, self.no_execute);
            s.rflags.set(Rflags::AC, self.ac);
            s.rip = CODE;
        });
        let ended = if self.access == Access::Fetch {
            DATA + 1
        } else {
            CODE + 2
        };
        let page_fault = 0x6000 + 14 * 16;
        self.ask_for_page(&mut board);
        let state = board.run_to(&[ended, page_fault]);
        if self.is_allowed() {
            assert_eq!(state.rip, ended, "{self:?}");
        } else {
            assert_eq!(state.rip, page_fault, "{self:?}");
            assert_eq!(board.word(state.gpr[4]), self.error_code(), "{self:?}");
            assert_eq!(state.cr2, DATA, "{self:?}");
        }
    }

    /// Another engine that asks for the page gets it where the access is allowed.
    fn ask_for_page(&self, board: &mut Board) {
        let before = board.state();
        let vcpu = &mut board.vcpus[0];
        let offset = match self.access {
            Access::Fetch => vcpu.code_page(DATA).map(|page| page.offset),
            access => vcpu
                .data_page(DATA, access == Access::Write)
                .map(|page| page.offset),
        };
        let expected = self.is_allowed().then_some(DATA as usize);
        assert_eq!(offset, expected, "{self:?}");
        assert_eq!(board.state(), before, "{self:?}");
    }
}

#[test]
fn sdm_5_6_1_access_rights_matrix() {
    for bits in 0..512u32 {
        let bit = |n: u32| bits >> n & 1 != 0;
        let mut entry = 0;
        for (n, flag) in [(0, WRITABLE), (1, USER), (2, NO_EXECUTE)] {
            if bit(n) {
                entry |= flag;
            }
        }
        for access in [Access::Read, Access::Write, Access::Fetch] {
            Case {
                user: bit(3),
                entry,
                access,
                write_protect: bit(4),
                smep: bit(5),
                smap: bit(6),
                ac: bit(7),
                no_execute: bit(8),
            }
            .run();
        }
    }
}

#[test]
fn sdm_5_7_reserved_bits_and_absence() {
    let mut board = Board::long(0);
    let at = PAGE_TABLE + 8 * (DATA >> 12);
    board.change(|s| s.gpr[3] = DATA);
    board.set(at, DATA | 7 | 1 << 50);
    assert_eq!(board.fault(&[0x8a, 0x03]), (14, 1 | 8));
    let mut board = Board::long(3);
    board.change(|s| s.gpr[3] = DATA);
    board.set(at, 0);
    assert_eq!(board.fault(&[0x88, 0x03]), (14, 2 | 4));
}

#[test]
fn sdm_5_8_accessed_and_dirty_flags() {
    let mut board = Board::long(0);
    let at = PAGE_TABLE + 8 * (DATA >> 12);
    // mov al, [rbx]; mov [rbx], al
    board.code(&[0x8a, 0x03, 0x88, 0x03, 0x90]);
    board.change(|s| s.gpr[3] = DATA);
    board.step();
    assert_eq!(board.word(at) & 0x60, 0x20);
    board.step();
    assert_eq!(board.word(at) & 0x60, 0x60);
}

#[test]
fn sdm_5_10_4_1_invlpg_makes_a_changed_entry_count() {
    let mut board = Board::long(0);
    board.write(DATA, &[1]);
    board.write(0xd000, &[2]);
    let at = PAGE_TABLE + 8 * (DATA >> 12);
    // mov al, [rbx]; mov [rcx], rdx; invlpg [rbx]; mov ah, [rbx]; nop
    board.code(&[
        0x8a, 0x03, 0x48, 0x89, 0x11, 0x0f, 0x01, 0x3b, 0x8a, 0x23, 0x90,
    ]);
    board.change(|s| {
        s.gpr[3] = DATA;
        s.gpr[1] = at;
        s.gpr[2] = 0xd007;
        s.gpr[0] = 0;
    });
    assert_eq!(board.run_to(&[CODE + 10]).gpr[0], 0x0201);
}

#[test]
fn sdm_5_8_an_entry_that_another_processor_takes_away_is_not_marked() {
    let mut board = Board::long(0);
    let at = (PAGE_TABLE + 8 * (DATA >> 12)) as usize;
    // L: invlpg [rbx]; mov [rbx], al; jmp L. The handler of #PF: add rsp, 8; iretq
    board.code(&[0x0f, 0x01, 0x3b, 0x88, 0x03, 0xeb, 0xf9]);
    board.write(HANDLERS + 14 * 16, &[0x48, 0x83, 0xc4, 8, 0x48, 0xcf]);
    board.change(|s| s.gpr[3] = DATA);
    let (memory, engine) = (board.memory.clone(), board.engine.clone());
    let other = std::thread::spawn(move || {
        let ram = memory.ram();
        let mut marked = 0;
        for round in 0..1_000_000 {
            ram.exchange(at, DATA | 3);
            // Only the first walk finds an entry that is not marked yet.
            for _ in 0..round % 64 {
                ram.load::<u64>(at);
            }
            ram.exchange(at, 0u64);
            // As long as a walk may take from its look at the entry to its end.
            for _ in 0..20 {
                std::hint::spin_loop();
                marked |= ram.load::<u64>(at);
            }
        }
        engine.kick(0);
        marked
    });
    assert_eq!(board.run(), Exit::Kicked);
    assert_eq!(other.join().unwrap(), 0);
}

#[test]
fn sdm_3_3_5_code_that_crosses_4_gib_goes_on_at_0_in_compatibility_mode() {
    let mut board = Board::long(0);
    // Its base is 0xffff_f000.
    board.set_descriptor(FREE, flat32(TYPE_CODE) | 0xff << 56 | 0xff_f000 << 16);
    // The last page below 4 GiB, through tables of its own, is the one at 0xd000; the first above
    // it is not mapped.
    let last = TABLES + 0x4000;
    board.set(TABLES + 0x1000 + 8 * 3, last | 7);
    board.set(last + 8 * 511, (last + 0x1000) | 7);
    board.set(last + 0x1000 + 8 * 511, 0xd007);
    // mov eax, 0x44332211; nop
    board.write(0xdffe, &[0xb8, 0x11]);
    board.write(0, &[0x22, 0x33, 0x44, 0x90]);
    // From 64-bit mode: lret
    board.set(STACK, 0xffe | u64::from(FREE) << 32);
    board.code(&[0xcb]);
    board.step();
    let state = board.step();
    assert_eq!((state.rip, state.gpr[0]), (0x1003, 0x4433_2211));
}
