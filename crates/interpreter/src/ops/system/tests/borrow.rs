//! What another engine borrows of a vCPU (`crate::borrow`).

use super::board::{Board, CODE, DATA, FREE, HANDLERS, PAGE_TABLE, STACK, flat32};
use crate::{Changes, Doorbell, InterpreterVcpu, Mode, Next, View};
use clock::Clock;
use engine::{Engine, Exit, Platform, Vcpu};
use memory::{GuestMemory, Kind, RegionSpec};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use x86::{Cr0, Cr4, Rflags, SegmentRegister, Xcr0};

const PRESENT: u64 = 1;
const USER: u64 = 4;
const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;
const GLOBAL: u64 = 0x100;
const NO_EXECUTE: u64 = 1 << 63;
/// What page-table entries of a board are made of.
const OPEN: u64 = 7;

const fn entry(linear: u64) -> u64 {
    PAGE_TABLE + 8 * (linear >> 12)
}

/// Attends until there is nothing left to attend to, as another engine's loop does.
#[track_caller]
fn settle(vcpu: &mut InterpreterVcpu) {
    while vcpu.wants_attention() {
        assert_eq!(vcpu.attend(), Next::Blocks);
    }
}

/// Executes `count` instructions, attending whenever it is wanted.
#[track_caller]
fn run(vcpu: &mut InterpreterVcpu, count: u32) {
    for _ in 0..count {
        settle(vcpu);
        vcpu.run_instruction().unwrap();
    }
}

impl Board {
    /// Runs `body` with the vCPU between `begin` and `end`.
    fn borrowed<T>(&mut self, body: impl FnOnce(&mut InterpreterVcpu) -> T) -> T {
        let platform: Arc<dyn Platform> = self.ports.clone();
        let vcpu = &mut self.vcpus[0];
        let stands = vcpu.begin(&platform);
        let result = body(vcpu);
        vcpu.end();
        drop(stands);
        result
    }

    /// What the vCPU forgets when it executes the first `count` instructions of `code`.
    fn changes(&mut self, code: &[u8], count: u32) -> Changes {
        self.code(code);
        self.change(|s| s.rip = CODE);
        self.vcpus[0].keep_journal();
        self.borrowed(|vcpu| {
            settle(vcpu);
            vcpu.take_changes();
            run(vcpu, count);
            settle(vcpu);
            let has_changes = vcpu.has_changes();
            let changes = vcpu.take_changes();
            assert_eq!(has_changes, changes != Changes::default());
            changes
        })
    }
}

mod instructions {
    use super::*;

    #[test]
    fn one_instruction_is_executed_and_kept_decoded() {
        let mut board = Board::long(0);
        // inc rax; inc rax; jmp back
        board.code(&[0x48, 0xff, 0xc0, 0x48, 0xff, 0xc0, 0xeb, 0xf8]);
        board.borrowed(|vcpu| {
            vcpu.gpr_mut()[0] = 7;
            run(vcpu, 1);
            assert_eq!((vcpu.gpr()[0], vcpu.rip()), (8, CODE + 3));
            run(vcpu, 2);
            assert_eq!((vcpu.gpr()[0], vcpu.rip()), (9, CODE));
            let decoded = vcpu.cache.decoded;
            run(vcpu, 300);
            assert_eq!(vcpu.gpr()[0], 209);
            assert_eq!(vcpu.cache.decoded, decoded);
        });
    }

    #[test]
    fn blocks_and_instructions_of_one_place_are_both_kept() {
        let mut board = Board::long(0);
        // inc rax; inc rax; jmp back
        board.code(&[0x48, 0xff, 0xc0, 0x48, 0xff, 0xc0, 0xeb, 0xf8]);
        board.borrowed(|vcpu| {
            settle(vcpu);
            let mut decoded = 0;
            for round in 0..10 {
                vcpu.run_block().unwrap();
                assert_eq!(vcpu.rip(), CODE);
                for _ in 0..3 {
                    vcpu.run_instruction().unwrap();
                }
                assert_eq!(vcpu.gpr()[0], 4 * (round + 1));
                if round == 0 {
                    decoded = vcpu.cache.decoded;
                }
            }
            assert_eq!(vcpu.cache.decoded, decoded);
        });
    }

    #[test]
    fn a_kept_instruction_goes_when_its_code_is_written() {
        let mut board = Board::long(0);
        board.code(&[0x48, 0xff, 0xc0]);
        let memory = board.memory.clone();
        board.borrowed(|vcpu| {
            run(vcpu, 1);
            // dec rax
            memory.write(CODE, &[0x48, 0xff, 0xc8]).unwrap();
            vcpu.set_rip(CODE);
            assert!(vcpu.wants_attention());
            run(vcpu, 1);
            assert_eq!(vcpu.gpr()[0], 0);
        });
    }

    #[test]
    fn one_that_crosses_a_page_is_fetched_from_where_it_is_now() {
        let mut board = Board::long(0);
        let last = CODE + 0xfff;
        // inc al, in two pages; the second one is then mapped elsewhere, where it is dec al.
        board.write(last, &[0xfe, 0xc0]);
        board.write(0xd000, &[0xc8]);
        let (memory, next) = (board.memory.clone(), entry(last + 1));
        board.borrowed(|vcpu| {
            for _ in 0..2 {
                vcpu.set_rip(last);
                run(vcpu, 1);
            }
            assert_eq!((vcpu.gpr()[0], vcpu.rip()), (2, last + 2));
            memory.store::<u64>(next, 0xd000 | OPEN).unwrap();
            vcpu.cpu.tlb.flush();
            vcpu.set_rip(last);
            run(vcpu, 1);
            assert_eq!(vcpu.gpr()[0], 1);
        });
    }

    #[test]
    fn what_it_raises_is_delivered() {
        let mut board = Board::long(0);
        board.code(&[0x0f, 0x0b]);
        board.borrowed(|vcpu| {
            run(vcpu, 1);
            assert_eq!(vcpu.rip(), HANDLERS + 6 * 16);
            assert!(vcpu.wants_attention(), "an interrupt may be due");
        });
    }

    #[test]
    fn a_triple_fault_is_an_exit() {
        let mut board = Board::long(0);
        board.code(&[0x0f, 0x0b]);
        board.change(|s| s.idtr.limit = 0);
        let exit = board.borrowed(|vcpu| {
            settle(vcpu);
            vcpu.run_instruction().unwrap_err()
        });
        assert!(matches!(exit, Exit::Shutdown(_)), "{exit:?}");
    }

    #[test]
    fn sdm_7_8_3_shadows_want_attention() {
        // sti; mov ss, ax
        for (code, len) in [(&[0xfb, 0x90][..], 1), (&[0x8e, 0xd0, 0x90], 2)] {
            let mut board = Board::long(0);
            board.code(code);
            board.borrowed(|vcpu| {
                vcpu.gpr_mut()[0] = 0x10;
                run(vcpu, 1);
                assert_eq!(vcpu.rip(), CODE + len);
                assert!(vcpu.wants_attention());
                assert_eq!(vcpu.attend(), Next::Instruction);
                assert_eq!(vcpu.step(), None);
                assert_eq!(vcpu.rip(), CODE + len + 1);
                settle(vcpu);
            });
        }
    }

    #[test]
    fn a_debuggers_breakpoints_ask_for_the_interpreter() {
        let mut board = Board::long(0);
        board.code(&[0x90, 0x90]);
        assert!(!board.vcpus[0].is_debugged());
        board.vcpus[0].set_debug(&engine::DebugRequest {
            breakpoints: vec![CODE + 0x800],
            ..engine::DebugRequest::default()
        });
        board.borrowed(|vcpu| {
            assert_eq!(vcpu.attend(), Next::Blocks);
            assert!(vcpu.is_debugged() && vcpu.wants_attention());
        });
    }
}

mod registers {
    use super::*;

    #[test]
    fn they_are_those_of_the_state() {
        let mut board = Board::long(0);
        let vcpu = &mut board.vcpus[0];
        vcpu.gpr_mut()[15] = 15;
        vcpu.set_rip(0xffff_8000_0000_0000);
        vcpu.set_rflags_status_df_if(!0);
        vcpu.set_base(SegmentRegister::Gs, 0xffff_9000_0000_0000);
        vcpu.set_kernel_gs_base(0x7000);
        vcpu.vectors().fpu.fcw = 0x27f;
        assert_eq!(vcpu.linear_rip(), vcpu.rip());
        assert_eq!(vcpu.base(SegmentRegister::Gs), 0xffff_9000_0000_0000);
        assert_eq!(vcpu.kernel_gs_base(), 0x7000);
        let rflags = vcpu.rflags();
        let state = board.state();
        assert_eq!((state.gpr[15], state.rip), (15, 0xffff_8000_0000_0000));
        let set = Rflags::STATUS | Rflags::DF | Rflags::IF | Rflags::FIXED;
        assert_eq!(state.rflags, set);
        assert_eq!(rflags, set.bits());
        assert_eq!(state.segments[5].base, 0xffff_9000_0000_0000);
        assert_eq!(state.syscall.kernel_gs_base, 0x7000);
        assert_eq!(state.fpu.control, 0x27f);
    }

    #[test]
    fn sdm_3_4_2_1_only_fs_and_gs_have_bases_in_64_bit_code() {
        let mut board = Board::long(0);
        let bases = |s: &mut x86::VcpuState| {
            for segment in &mut s.segments {
                segment.base = 0x1000;
            }
        };
        board.change(bases);
        use SegmentRegister as S;
        let registers = [S::Es, S::Cs, S::Ss, S::Ds, S::Fs, S::Gs];
        let all = |board: &Board| registers.map(|r| board.vcpus[0].base(r));
        assert_eq!(all(&board), [0, 0, 0, 0, 0x1000, 0x1000]);
        let mut board = Board::protected(0);
        board.change(bases);
        assert_eq!(all(&board), [0x1000; 6]);
        assert_eq!(board.vcpus[0].linear_rip(), CODE + 0x1000);
    }
}

mod modes {
    use super::*;

    const LONG: Mode = Mode {
        bits: 64,
        user: false,
        view: View::Supervisor,
        smap: false,
        flat: true,
        x87: true,
        sse: false,
        avx: false,
        tsd: false,
        rdtscp: true,
        fsgsbase: false,
    };

    #[test]
    fn they_follow_the_state() {
        assert_eq!(Board::long(0).vcpus[0].mode(), LONG);
        let user = Mode {
            user: true,
            view: View::User,
            ..LONG
        };
        assert_eq!(Board::long(3).vcpus[0].mode(), user);
        assert_eq!(
            Board::protected(3).vcpus[0].mode(),
            Mode { bits: 32, ..user }
        );
        let real = Mode {
            bits: 16,
            flat: false,
            ..LONG
        };
        assert_eq!(Board::real().vcpus[0].mode(), real);
    }

    #[test]
    fn sdm_5_6_1_views_follow_smap_ac_and_breakpoints() {
        let mut board = Board::long(0);
        board.change(|s| s.cr4 |= Cr4::SMAP);
        assert!(board.vcpus[0].mode().smap);
        assert_eq!(board.vcpus[0].mode().view, View::SupervisorOnly);
        board.change(|s| s.rflags |= Rflags::AC);
        assert_eq!(board.vcpus[0].mode().view, View::Supervisor);
        board.change(|s| s.dr7 |= 1 | 3 << 16);
        assert_eq!(board.vcpus[0].mode().view, View::Checked);
    }

    #[test]
    fn sdm_2_5_tsd_is_told() {
        let mut board = Board::long(3);
        board.change(|s| s.cr4 |= Cr4::TSD);
        assert!(board.vcpus[0].mode().tsd);
    }

    type Change = fn(&mut x86::VcpuState);

    #[test]
    fn segments_that_do_something_are_not_flat() {
        let changes: [Change; 9] = [
            |s| s.segments[3].base = 0x10,
            |s| s.segments[0].limit = 0xffff_efff,
            |s| s.segments[3].unusable = true,
            // Read-only, and expanding down.
            |s| s.segments[3].access &= !2,
            |s| s.segments[2].access |= 4,
            // A 16-bit stack.
            |s| s.segments[2].access &= !(1 << 14),
            // Code that may only be executed, and one that does not begin at 0.
            |s| s.segments[1].access &= !2,
            |s| s.segments[1].base = 0x1000,
            |s| s.segments[1].limit = 0x000f_ffff,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut board = Board::protected(0);
            assert!(board.vcpus[0].mode().flat);
            board.change(change);
            assert!(!board.vcpus[0].mode().flat, "change {number}");
            // In 64-bit mode, they do nothing.
            let mut board = Board::long(0);
            board.change(change);
            assert!(board.vcpus[0].mode().flat, "change {number}");
        }
    }

    #[test]
    fn loading_a_segment_register_counts_at_once() {
        // mov ds, ax; mov ds, bx; the same with es.
        for code in [[0x8e, 0xd8, 0x8e, 0xdb], [0x8e, 0xc0, 0x8e, 0xc3]] {
            let mut board = Board::protected(0);
            board.set_descriptor(FREE, flat32(0x93) | 0x10 << 16);
            board.code(&code);
            board.borrowed(|vcpu| {
                vcpu.gpr_mut()[0] = FREE.into();
                vcpu.gpr_mut()[3] = 0x10;
                assert!(vcpu.mode().flat);
                run(vcpu, 1);
                assert!(!vcpu.mode().flat);
                run(vcpu, 1);
                assert!(vcpu.mode().flat);
            });
        }
    }

    #[test]
    fn sdm_2_5_units_follow_the_control_registers() {
        let all: Change = |s| {
            s.cr0 |= Cr0::MP | Cr0::NE;
            s.cr4 |= Cr4::OSFXSR | Cr4::OSXSAVE;
            s.xcr0 = Xcr0::X87 | Xcr0::SSE | Xcr0::AVX;
        };
        let cases: [(Change, [bool; 3]); 7] = [
            (|_| {}, [true, true, true]),
            (|s| s.cr0 |= Cr0::TS, [false, false, false]),
            (|s| s.cr0 |= Cr0::EM, [false, false, true]),
            (|s| s.cr4 -= Cr4::OSFXSR, [true, false, true]),
            (|s| s.cr4 -= Cr4::OSXSAVE, [true, true, false]),
            (|s| s.xcr0 -= Xcr0::AVX, [true, true, false]),
            // An unmasked invalid operation waits.
            (
                |s| (s.fpu.control, s.fpu.status) = (0x37e, 0x8081),
                [false, true, true],
            ),
        ];
        for (number, (change, expected)) in cases.into_iter().enumerate() {
            let mut board = Board::long(0);
            board.change(all);
            board.change(change);
            let mode = board.vcpus[0].mode();
            assert_eq!([mode.x87, mode.sse, mode.avx], expected, "change {number}");
        }
    }

    #[test]
    fn instructions_that_enable_units_count_at_once() {
        let mut board = Board::long(0);
        board.change(|s| {
            s.cr0 |= Cr0::TS;
            s.cr4 |= Cr4::OSFXSR | Cr4::OSXSAVE;
        });
        // clts; xsetbv; mov cr4, rdi
        board.code(&[0x0f, 0x06, 0x0f, 0x01, 0xd1, 0x0f, 0x22, 0xe7]);
        board.borrowed(|vcpu| {
            let gpr = vcpu.gpr_mut();
            (gpr[0], gpr[1], gpr[2]) = (7, 0, 0);
            gpr[7] = Cr4::PAE.bits();
            let units = |vcpu: &InterpreterVcpu| {
                let mode = vcpu.mode();
                [mode.x87, mode.sse, mode.avx]
            };
            assert_eq!(units(vcpu), [false; 3]);
            run(vcpu, 1);
            assert_eq!(units(vcpu), [true, true, false]);
            run(vcpu, 1);
            assert_eq!(units(vcpu), [true; 3]);
            run(vcpu, 1);
            assert_eq!(units(vcpu), [true, false, false]);
        });
    }
}

mod pages {
    use super::*;
    use crate::{CodePage, DataPage};

    #[test]
    fn sdm_5_8_accessed_and_dirty_bits_are_set_as_by_the_access() {
        let mut board = Board::long(0);
        let bits = |board: &Board| board.word(entry(DATA)) & (ACCESSED | DIRTY);
        let page = |writable| DataPage {
            offset: DATA as usize,
            readable: true,
            writable,
        };
        assert_eq!(board.vcpus[0].data_page(DATA + 5, false), Some(page(false)));
        assert_eq!(bits(&board), ACCESSED);
        assert_eq!(board.vcpus[0].data_page(DATA, true), Some(page(true)));
        assert_eq!(bits(&board), ACCESSED | DIRTY);
        assert_eq!(board.vcpus[0].data_page(DATA, false), Some(page(true)));
        assert_eq!(board.word(entry(CODE)) & ACCESSED, 0);
        assert!(board.vcpus[0].code_page(CODE).is_some());
        assert_eq!(board.word(entry(CODE)) & (ACCESSED | DIRTY), ACCESSED);
    }

    #[test]
    fn sdm_5_10_2_4_code_is_global_by_its_entry() {
        let mut board = Board::long(0);
        board.change(|s| s.cr4 |= Cr4::PGE);
        let page = |global| CodePage {
            offset: CODE as usize,
            global,
        };
        assert_eq!(board.vcpus[0].code_page(CODE + 9), Some(page(false)));
        board.set(entry(CODE), CODE | OPEN | GLOBAL);
        // The TLB still has the old entry.
        assert_eq!(board.vcpus[0].code_page(CODE), Some(page(false)));
        board.vcpus[0].cpu.tlb.flush();
        for _ in 0..2 {
            assert_eq!(board.vcpus[0].code_page(CODE), Some(page(true)));
        }
        let mut board = Board::protected(0);
        assert_eq!(board.vcpus[0].code_page(CODE), Some(page(true)));
    }

    #[test]
    fn what_would_fault_is_not_there_and_raises_nothing() {
        let mut board = Board::long(3);
        board.change(|s| s.cr2 = 0x1234);
        board.set(entry(DATA), DATA | OPEN & !PRESENT);
        board.set(entry(STACK), STACK | OPEN & !USER);
        board.set(entry(0xd000), 0xd000 | OPEN | NO_EXECUTE);
        board.set(entry(0xe000), 0xe000 | OPEN | 1 << 50);
        let before = board.state();
        let vcpu = &mut board.vcpus[0];
        for linear in [DATA, STACK, 0xe000, 1 << 47, 1 << 21, u64::MAX] {
            assert_eq!(vcpu.code_page(linear), None, "{linear:x}");
            assert_eq!(vcpu.data_page(linear, false), None, "{linear:x}");
            assert_eq!(vcpu.data_page(linear, true), None, "{linear:x}");
        }
        assert_eq!(vcpu.code_page(0xd000), None);
        assert!(vcpu.data_page(0xd000, true).is_some());
        // Neither an exception nor CR2 is left behind.
        assert_eq!(board.state(), before);
    }

    #[test]
    fn an_exception_that_waits_goes_on_waiting() {
        let mut board = Board::long(0);
        let waiting = x86::Exception::new(x86::Vector::X87);
        board.change(|s| s.events.exception = Some(waiting));
        assert_eq!(board.vcpus[0].data_page(1 << 21, false), None);
        assert_eq!(board.state().events.exception, Some(waiting));
    }

    #[test]
    fn devices_are_not_pages() {
        let mut board = Board::protected(0);
        // The local APIC, and what is behind the memory.
        for linear in [0xfee0_0000, 4 << 20] {
            assert_eq!(board.vcpus[0].data_page(linear, false), None);
            assert_eq!(board.vcpus[0].data_page(linear, true), None);
        }
        assert_eq!(board.vcpus[0].code_page(4 << 20), None);
    }

    #[test]
    fn code_is_written_by_the_interpreter() {
        let mut board = Board::long(0);
        assert!(board.vcpus[0].data_page(DATA, true).is_some());
        board.vcpus[0].keep_journal();
        board.borrowed(|vcpu| {
            vcpu.take_changes();
            vcpu.watch_code(DATA as usize >> 12);
            assert!(vcpu.take_changes().writes, "it might have been written");
            assert_eq!(vcpu.data_page(DATA, true), None);
            let page = vcpu.data_page(DATA, false).unwrap();
            assert!(page.readable && !page.writable);
        });
    }

    #[test]
    fn watched_accesses_are_the_interpreters() {
        let mut board = Board::long(3);
        board.change(|s| {
            s.cr0 |= Cr0::AM;
            s.rflags |= Rflags::AC;
        });
        assert_eq!(board.vcpus[0].mode().view, View::Checked);
        assert_eq!(board.vcpus[0].data_page(DATA, false), None);
        assert!(board.vcpus[0].code_page(CODE).is_some());
    }

    #[test]
    fn rom_is_read_and_executed() {
        let region = |gpa, kind| RegionSpec {
            gpa,
            len: 0x10000,
            kind,
        };
        let setup = engine::Setup {
            memory: GuestMemory::new(&[region(0, Kind::Ram), region(0xf0000, Kind::Rom)]).unwrap(),
            clock: Clock::manual(),
            cpuid: vec![crate::cpuid::table(0, 1, 1_000_000)],
            tsc_khz: 1_000_000,
            tracer: None,
        };
        let (_engine, mut vcpus) = crate::Interpreter::create_vcpus(&setup).unwrap();
        let vcpu = &mut vcpus[0];
        let (offset, _) = setup.memory.page(0xf1000).unwrap();
        let page = DataPage {
            offset,
            readable: true,
            writable: false,
        };
        for _ in 0..2 {
            assert_eq!(vcpu.data_page(0xf1234, false), Some(page));
            assert_eq!(vcpu.data_page(0xf1234, true), None);
        }
        assert_eq!(vcpu.code_page(0xf1234).unwrap().offset, offset);
    }
}

mod journal {
    use super::*;

    #[test]
    fn it_is_off_unless_somebody_wants_it() {
        let mut board = Board::long(0);
        board.code(&[0x0f, 0x22, 0xd8]);
        board.borrowed(|vcpu| {
            vcpu.gpr_mut()[0] = 0x10000;
            run(vcpu, 1);
            vcpu.forget_code();
            assert!(!vcpu.has_changes());
        });
    }

    #[test]
    fn sdm_5_10_4_1_what_invalidates_is_told() {
        let mut board = Board::long(0);
        board.change(|s| {
            s.gpr[0] = 0x10000;
            s.gpr[3] = DATA + 0x123;
        });
        let nothing = Changes::default();
        assert_eq!(board.changes(&[0x90], 1), nothing);
        // mov cr3, rax
        let lower = Changes {
            lower: true,
            ..nothing.clone()
        };
        assert_eq!(board.changes(&[0x0f, 0x22, 0xd8], 1), lower);
        // invlpg [rbx]
        let page = Changes {
            pages: vec![DATA + 0x123],
            ..nothing.clone()
        };
        assert_eq!(board.changes(&[0x0f, 0x01, 0x3b], 1), page);
        // A page fault: mov al, [0x200000]
        let absent = Changes {
            pages: vec![1 << 21],
            ..nothing.clone()
        };
        assert_eq!(board.changes(&[0x8a, 0x04, 0x25, 0, 0, 0x20, 0], 1), absent);
        // mov rdx, cr0; btr edx, 16; mov cr0, rdx: without WP
        let all = board.changes(
            &[0x0f, 0x20, 0xc2, 0x0f, 0xba, 0xf2, 16, 0x0f, 0x22, 0xc2],
            3,
        );
        assert!(all.all);
    }

    #[test]
    fn sdm_5_10_4_1_invlpg_in_a_large_page_tells_all_of_it() {
        let mut board = Board::long(0);
        // 2 MiB at 2 MiB, mapped by one entry.
        board.set(0x12008, 0x20_0000 | 0x83);
        // invlpg [rbx]
        board.code(&[0x0f, 0x01, 0x3b]);
        board.vcpus[0].keep_journal();
        let changes = board.borrowed(|vcpu| {
            vcpu.gpr_mut()[3] = 0x20_1000;
            let page = vcpu.data_page(0x3f_f000, false).unwrap();
            assert_eq!(page.offset, 0x3f_f000);
            settle(vcpu);
            vcpu.take_changes();
            run(vcpu, 1);
            vcpu.take_changes()
        });
        let is_told =
            |linear: &u64| changes.all || changes.pages.iter().any(|p| p >> 12 == linear >> 12);
        assert!(
            (0x20_0000..0x40_0000)
                .step_by(0x1000)
                .all(|linear| is_told(&linear))
        );
    }

    #[test]
    fn code_that_is_written_is_told_after_the_mail_was_taken() {
        let mut board = Board::long(0);
        board.vcpus[0].keep_journal();
        let memory = board.memory.clone();
        board.borrowed(|vcpu| {
            settle(vcpu);
            vcpu.watch_code(3);
            vcpu.take_changes();
            memory.write(0x3456, &[1]).unwrap();
            assert!(vcpu.wants_attention());
            settle(vcpu);
            assert!(vcpu.has_changes());
            assert_eq!(vcpu.take_changes().code, [3]);
            assert!(!vcpu.has_changes());
            // It is watched no longer.
            memory.write(0x3456, &[2]).unwrap();
            assert!(!vcpu.wants_attention());
        });
    }

    #[test]
    fn a_new_state_makes_everything_stale() {
        let mut board = Board::long(0);
        board.vcpus[0].keep_journal();
        board.change(|_| {});
        let changes = board.vcpus[0].take_changes();
        assert!(changes.all && changes.all_code);
    }
}

mod events {
    use super::*;

    /// Counts, and notes that what it rings for is there already.
    struct Bell {
        mailbox: Arc<crate::mailbox::Mailbox>,
        rung: AtomicU32,
    }

    impl Bell {
        fn at(vcpu: &mut InterpreterVcpu) -> Arc<Self> {
            let bell = Arc::new(Self {
                mailbox: vcpu.cpu.mailbox.clone(),
                rung: AtomicU32::new(0),
            });
            vcpu.set_doorbell(bell.clone());
            bell
        }
    }

    impl Doorbell for Bell {
        fn ring(&self) {
            assert!(self.mailbox.has_mail());
            self.rung.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_bell_rings_at_each_request() {
        let mut board = Board::long(0);
        let bell = Bell::at(&mut board.vcpus[0]);
        let engine = board.engine.clone();
        board.borrowed(|vcpu| {
            settle(vcpu);
            assert_eq!(vcpu.requests(), 0);
            engine.kick(0);
            engine.kick(0);
            assert_ne!(vcpu.requests(), 0);
            assert!(vcpu.wants_attention());
            assert_eq!(vcpu.attend(), Next::Exit(Exit::Kicked));
        });
        assert_eq!(bell.rung.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn the_timer_makes_the_vcpu_attend() {
        let mut board = Board::long(0);
        let bell = Bell::at(&mut board.vcpus[0]);
        let remote = board.vcpus[0].remote();
        board.borrowed(|vcpu| {
            settle(vcpu);
            remote.clone().post_timer();
            assert!(vcpu.wants_attention());
            settle(vcpu);
            assert_eq!(vcpu.requests(), 0);
        });
        assert_eq!(bell.rung.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn an_interrupt_waits_whatever_if_says() {
        let mut board = Board::long(0);
        board.code(&[0x90; 8]);
        // LINT0 passes the PIC's line on.
        board.change(|s| {
            s.apic.svr = 0x1ff;
            s.apic.lvt[3] = 7 << 8;
        });
        let engine = board.engine.clone();
        board.borrowed(|vcpu| {
            settle(vcpu);
            assert!(!vcpu.interrupt_waits());
            engine.set_external_interrupt(true);
            settle(vcpu);
            assert!(vcpu.interrupt_waits());
            assert_eq!(vcpu.rip(), CODE);
            vcpu.set_rflags_status_df_if(Rflags::IF.bits());
            vcpu.cpu.attend();
            settle(vcpu);
            assert_eq!(vcpu.rip(), HANDLERS + 16 * 0x55);
        });
    }

    #[test]
    fn an_nmi_waits_unless_it_is_blocked() {
        let mut board = Board::long(0);
        board.change(|s| s.events.nmi_pending = true);
        assert!(board.vcpus[0].interrupt_waits());
        board.change(|s| s.events.nmi_blocked = true);
        assert!(!board.vcpus[0].interrupt_waits());
    }

    #[test]
    fn the_apic_timer_has_a_deadline() {
        let mut board = Board::long(0);
        board.clock.advance(1000);
        assert_eq!(board.vcpus[0].machine_now(), 1000);
        assert_eq!(board.vcpus[0].apic_deadline(), None);
        // TSC-deadline mode; the counter runs at 1 GHz.
        board.change(|s| {
            s.apic.svr = 0x1ff;
            s.apic.lvt[0] = 2 << 17 | 0x40;
            s.apic.tsc_deadline = 5000;
        });
        assert_eq!(board.vcpus[0].apic_deadline(), Some(5000));
    }
}
