//! A debugger's session, packet by packet, and with gdb itself.

#[macro_use]
mod engines;
mod pvh;

use config::EngineKind;
use machine::{Consoles, Event, GdbServer, Machine, Payload, Visit};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Addresses in [`CODE`].
mod at {
    pub(super) const ENTRY: u64 = super::pvh::ENTRY as u64;
    /// `inc eax`, in the loop.
    pub(super) const LOOP: u64 = 0x10_001f;
    /// `mov [COUNTER], eax`, behind it.
    pub(super) const STORE: u64 = 0x10_0020;
    pub(super) const EXIT: u64 = 0x10_0030;
    pub(super) const TRIPLE_FAULT: u64 = 0x10_0040;
    pub(super) const COUNTER: u64 = 0x10_1000;
}

/// The second CPU's loop.
const SECOND: u64 = 0x8000;

/// 32-bit code without paging, at [`at::ENTRY`].
const CODE: [&[u8]; 9] = [
    // Starts the second CPU in an endless loop:
    // mov word [0x8000], 0xfeeb; mov dword [0xfee00300], 0xc4500 (INIT), 0xc4608 (start-up)
    &[0x66, 0xc7, 0x05, 0x00, 0x80, 0x00, 0x00, 0xeb, 0xfe],
    &[0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00, 0x45, 0x0c, 0x00],
    &[0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x08, 0x46, 0x0c, 0x00],
    // xor eax, eax; LOOP: inc eax; mov [COUNTER], eax; jmp LOOP
    &[0x31, 0xc0, 0x40, 0xa3, 0x00, 0x10, 0x10, 0x00, 0xeb, 0xf8],
    &[0x90; 9],
    // EXIT: mov al, 7; out 0xf4, al; hlt
    &[0xb0, 0x07, 0xe6, 0xf4, 0xf4],
    &[0x90; 11],
    // TRIPLE_FAULT: lidt [0x102000], which is zero; ud2
    &[0x0f, 0x01, 0x1d, 0x00, 0x20, 0x10, 0x00],
    &[0x0f, 0x0b],
];

/// Runs a machine of two CPUs under `engine` as its owner does until it ends. Returns where gdb may call, and
/// how the visits went.
fn start(engine: EngineKind, address: &str) -> (String, JoinHandle<Vec<Visit>>) {
    let shape = config::Machine {
        engine,
        cpus: 2,
        memory: 64 << 20,
        ..config::Machine::default()
    };
    let mut machine = Machine::new(shape, Consoles::default(), None).unwrap();
    machine
        .load(Payload {
            kernel: Arc::new(pvh::kernel(&CODE.concat())),
            ..Payload::default()
        })
        .unwrap();
    let mut server = GdbServer::listen(address, machine.events()).unwrap();
    let address = server.address().to_owned();
    let owner = std::thread::spawn(move || {
        let mut visits = Vec::new();
        loop {
            let event = machine
                .wait(Some(Duration::from_secs(60)))
                .expect("the test hangs");
            assert_eq!(event, Event::Debugger);
            let visit = server.serve(&mut machine, None, &mut |_, event| {
                ControlFlow::Break(match event {
                    Event::Exit(status) => status,
                    Event::TripleFault { .. } => 99,
                    _ => panic!("unexpected: {event:?}"),
                })
            });
            let gone = matches!(visit, Visit::Killed | Visit::Ended);
            if visit != Visit::None {
                visits.push(visit);
            }
            if !visits.is_empty() {
                machine.resume();
            }
            if gone {
                return visits;
            }
        }
    });
    (address, owner)
}

/// The debugger's side of the protocol.
struct Client(TcpStream);

impl Client {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut client = Self(stream);
        client.send("QStartNoAckMode");
        assert_eq!(client.byte(), b'+');
        assert_eq!(client.receive(), "OK");
        client.0.write_all(b"+").unwrap();
        client
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.0.read_exact(&mut byte).unwrap();
        byte[0]
    }

    fn send(&mut self, body: &str) {
        let sum = body.bytes().fold(0u8, u8::wrapping_add);
        self.0
            .write_all(format!("${body}#{sum:02x}").as_bytes())
            .unwrap();
    }

    /// The next packet's body, run lengths expanded.
    fn receive(&mut self) -> String {
        assert_eq!(self.byte(), b'$');
        let mut body = String::new();
        loop {
            match self.byte() {
                b'#' => break,
                b'*' => {
                    let repeated = body.chars().last().unwrap();
                    let count = self.byte() - 29;
                    body.extend(std::iter::repeat_n(repeated, count.into()));
                }
                byte => body.push(byte.into()),
            }
        }
        let checksum = [self.byte(), self.byte()];
        assert!(checksum.iter().all(u8::is_ascii_hexdigit));
        body
    }

    fn ask(&mut self, body: &str) -> String {
        self.send(body);
        self.receive()
    }

    /// A register of the current thread, by its number.
    fn register(&mut self, number: usize) -> u64 {
        little_endian(&self.ask(&format!("p{number:x}")))
    }

    fn rip(&mut self) -> u64 {
        self.register(16)
    }

    fn set_rip(&mut self, value: u64) {
        let text: String = value
            .to_le_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(self.ask(&format!("P10={text}")), "OK");
    }

    fn counter(&mut self) -> u64 {
        little_endian(&self.ask(&format!("m{:x},4", at::COUNTER)))
    }

    /// Continues to `address`, with a breakpoint of `kind`.
    fn run_to(&mut self, kind: u8, address: u64) -> String {
        assert_eq!(self.ask(&format!("Z{kind},{address:x},1")), "OK");
        let stop = self.ask("vCont;c");
        assert_eq!(self.ask(&format!("z{kind},{address:x},1")), "OK");
        stop
    }
}

fn little_endian(hex: &str) -> u64 {
    let digits = |i: usize| u64::from_str_radix(&hex[i..i + 2], 16).unwrap();
    (0..hex.len())
        .step_by(2)
        .rev()
        .fold(0, |value, i| value << 8 | digits(i))
}

/// Whether the host has a KVM that can be used.
fn any_kvm() -> Result<(), String> {
    machine::kvm_speed().map(|_| ()).map_err(|e| e.to_string())
}

on_every_engine! {
    any_kvm;
    breakpoints_steps_and_registers,
    a_breakpoint_is_hit_again_each_time_round,
    watchpoints,
    memory_is_read_and_written_where_it_is,
    all_registers_at_once,
    cpus_are_threads,
    a_running_guest_is_interrupted,
    a_triple_fault_is_shown_before_it_is_the_end,
    a_reset_starts_anew,
    the_guest_goes_on_without_its_debugger,
    #[ignore = "needs gdb"]
    with_gdb_itself,
}

fn breakpoints_steps_and_registers(engine: EngineKind) {
    let (address, owner) = start(engine, "127.0.0.1:0");
    let mut gdb = Client::connect(&address);
    assert!(gdb.ask("?").starts_with("T05"));
    assert_eq!(gdb.rip(), at::ENTRY, "nothing was executed");

    let stop = gdb.run_to(0, at::LOOP);
    assert!(
        stop.starts_with("T05") && stop.contains("swbreak:"),
        "{stop}"
    );
    assert_eq!(gdb.rip(), at::LOOP);
    assert_eq!(gdb.register(0), 0);
    let code = gdb.ask(&format!("m{:x},1", at::LOOP));
    assert_eq!(code, "40", "the breakpoint is not in memory");

    assert!(gdb.ask("vCont;s:1").starts_with("T05"));
    assert_eq!(gdb.rip(), at::STORE);
    assert_eq!(gdb.register(0), 1);
    assert_eq!(gdb.counter(), 0);
    assert_eq!(gdb.ask("P0=e803000000000000"), "OK");
    assert!(gdb.ask("vCont;s:1;c").starts_with("T05"));
    assert_eq!(gdb.counter(), 1000);

    let stop = gdb.run_to(1, at::STORE);
    assert!(stop.contains("hwbreak:"), "{stop}");
    assert_eq!(gdb.register(0), 1001);

    gdb.set_rip(at::EXIT);
    assert_eq!(gdb.ask("vCont;c"), "W07");
    assert_eq!(owner.join().unwrap(), [Visit::Ended]);
}

fn a_breakpoint_is_hit_again_each_time_round(engine: EngineKind) {
    let (address, owner) = start(engine, "127.0.0.1:0");
    let mut gdb = Client::connect(&address);
    assert_eq!(gdb.ask(&format!("Z0,{:x},1", at::STORE)), "OK");
    for round in 1..4 {
        assert!(gdb.ask("vCont;c").contains("swbreak:"));
        assert_eq!(gdb.register(0), round);
        assert_eq!(gdb.counter(), round - 1);
    }
    gdb.send("k");
    assert_eq!(owner.join().unwrap(), [Visit::Killed]);
}

fn watchpoints(engine: EngineKind) {
    if engine == EngineKind::Kvm && !machine::kvm_speed().is_ok_and(machine::Speed::is_hardware) {
        eprintln!("skipped: a KVM that emulates instructions does not look at debug registers");
        return;
    }
    let (address, owner) = start(engine, "127.0.0.1:0");
    let mut gdb = Client::connect(&address);
    // The last byte of what the loop writes.
    let point = format!("2,{:x},1", at::COUNTER + 3);
    assert_eq!(gdb.ask(&format!("Z{point}")), "OK");
    for round in 1..4 {
        let stop = gdb.ask("vCont;c");
        assert!(
            stop.contains(&format!("watch:{:x};", at::COUNTER + 3)),
            "{stop}"
        );
        assert_eq!(gdb.counter(), round, "the instruction is complete");
        assert_eq!(gdb.rip(), at::STORE + 5);
    }
    assert_eq!(gdb.ask(&format!("z{point}")), "OK");
    assert_eq!(gdb.ask(&format!("Z3,{:x},4", at::COUNTER)), "OK");
    let stop = gdb.run_to(0, at::LOOP);
    assert!(stop.contains("swbreak:"), "writes are no reads: {stop}");
    gdb.send("k");
    assert_eq!(owner.join().unwrap(), [Visit::Killed]);
}

fn memory_is_read_and_written_where_it_is(engine: EngineKind) {
    let (address, owner) = start(engine, "127.0.0.1:0");
    let mut gdb = Client::connect(&address);
    gdb.run_to(0, at::LOOP);
    // Replaces `inc eax`, which was executed and decoded, by `dec eax`.
    gdb.run_to(0, at::LOOP);
    assert_eq!(gdb.ask(&format!("M{:x},1:48", at::LOOP)), "OK");
    assert_eq!(gdb.ask("vCont;s:1").get(..3), Some("T05"));
    assert_eq!(gdb.register(0), 0, "the new instruction was executed");
    // Registers of the I/O APIC and addresses without anything are not touched.
    for device in ["mfec00000,4", "m7ffffffff0,4", "Mfec00000,4:00000000"] {
        assert!(gdb.ask(device).starts_with('E'), "{device}");
    }
    gdb.send("k");
    assert_eq!(owner.join().unwrap(), [Visit::Killed]);
}

fn all_registers_at_once(engine: EngineKind) {
    let (address, owner) = start(engine, "127.0.0.1:0");
    let mut gdb = Client::connect(&address);
    let before = gdb.ask("g");
    assert_eq!(gdb.ask(&format!("G{before}")), "OK");
    assert_eq!(gdb.ask("g"), before);
    let changed = "2a".to_owned() + &before[2..];
    assert_eq!(gdb.ask(&format!("G{changed}")), "OK");
    assert_eq!(gdb.register(0) & 0xff, 0x2a);
    gdb.send("k");
    assert_eq!(owner.join().unwrap(), [Visit::Killed]);
}

fn cpus_are_threads(engine: EngineKind) {
    let (address, owner) = start(engine, "127.0.0.1:0");
    let mut gdb = Client::connect(&address);
    let threads = gdb.ask("qfThreadInfo");
    assert!(
        threads.starts_with('m') && threads.ends_with('2'),
        "{threads}"
    );
    gdb.run_to(0, at::LOOP);
    // The second CPU runs by now, or will.
    let stop = gdb.run_to(0, SECOND);
    assert!(stop.contains("thread:02"), "{stop}");
    assert_eq!(gdb.ask("Hg2"), "OK");
    assert_eq!(gdb.register(18), 0x800, "CS");
    assert_eq!(gdb.rip(), 0, "the offset");
    // One CPU steps while the other stands.
    assert_eq!(gdb.ask("Hg1"), "OK");
    let first = gdb.rip();
    assert!(gdb.ask("vCont;s:2;c").contains("thread:02"));
    assert_eq!(gdb.ask("Hg1"), "OK");
    assert_eq!(gdb.rip(), first);
    gdb.send("k");
    assert_eq!(owner.join().unwrap(), [Visit::Killed]);
}

fn a_running_guest_is_interrupted(engine: EngineKind) {
    let (address, owner) = start(engine, "127.0.0.1:0");
    let mut gdb = Client::connect(&address);
    gdb.run_to(0, at::LOOP);
    for _ in 0..3 {
        gdb.send("vCont;c");
        gdb.0.write_all(&[3]).unwrap();
        assert!(gdb.receive().starts_with("T02"));
    }
    let rip = gdb.rip();
    assert!((at::LOOP..at::EXIT).contains(&rip), "{rip:#x}");
    gdb.send("k");
    assert_eq!(owner.join().unwrap(), [Visit::Killed]);
}

fn a_triple_fault_is_shown_before_it_is_the_end(engine: EngineKind) {
    let (address, owner) = start(engine, "127.0.0.1:0");
    let mut gdb = Client::connect(&address);
    gdb.set_rip(at::TRIPLE_FAULT);
    let text = gdb.ask("vCont;c");
    assert!(text.starts_with('O'), "{text}");
    assert!(gdb.receive().starts_with("T0b"));
    assert_eq!(
        gdb.rip(),
        at::TRIPLE_FAULT + 7,
        "at the instruction that did it"
    );
    assert_eq!(gdb.ask("vCont;c"), "W63");
    assert_eq!(owner.join().unwrap(), [Visit::Ended]);
}

fn a_reset_starts_anew(engine: EngineKind) {
    let (address, owner) = start(engine, "127.0.0.1:0");
    let mut gdb = Client::connect(&address);
    gdb.run_to(0, at::STORE);
    let hex: String = b"reset".iter().map(|byte| format!("{byte:02x}")).collect();
    gdb.send(&format!("qRcmd,{hex}"));
    while gdb.receive() != "OK" {}
    assert_eq!(gdb.rip(), at::ENTRY);
    assert!(gdb.run_to(0, at::STORE).contains("swbreak:"));
    gdb.send("k");
    assert_eq!(owner.join().unwrap(), [Visit::Killed]);
}

fn the_guest_goes_on_without_its_debugger(engine: EngineKind) {
    let (address, owner) = start(engine, "127.0.0.1:0");
    let mut gdb = Client::connect(&address);
    gdb.run_to(0, at::STORE);
    let before = gdb.counter();
    assert_eq!(gdb.ask(&format!("Z0,{:x},1", at::STORE)), "OK");
    assert_eq!(gdb.ask("D"), "OK");
    // The next one comes, and hangs up without a word; breakpoints have gone with the first.
    loop {
        let mut gdb = Client::connect(&address);
        if gdb.counter() > before + 1 {
            break;
        }
    }
    // What is no protocol at all ends the visit, not the machine.
    let mut noise = TcpStream::connect(&address).unwrap();
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n$$$###").unwrap();
    drop(noise);
    let mut gdb = Client::connect(&address);
    gdb.send("k");
    let visits = owner.join().unwrap();
    assert!(
        visits.len() >= 3 && visits.ends_with(&[Visit::Killed]),
        "{visits:?}"
    );
}

fn with_gdb_itself(engine: EngineKind) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("gdb");
    let (address, owner) = start(engine, socket.to_str().unwrap());
    let output = std::process::Command::new("gdb")
        .args(["-nx", "-batch", "-ex", &format!("target remote {address}")])
        .args([
            "-ex",
            "printf \"entry %#lx\\n\", $rip",
            "-ex",
            "hbreak *0x10001f",
        ])
        .args([
            "-ex", "continue", "-ex", "delete", "-ex", "stepi", "-ex", "stepi",
        ])
        .args(["-ex", "printf \"count %d %d\\n\", $rax, *(int *)0x101000"])
        .args([
            "-ex",
            "set var *(int *)0x101000 = 1234",
            "-ex",
            "x/wx 0x101000",
        ])
        .args([
            "-ex",
            "set var $rax = 41",
            "-ex",
            "watch *(int *)0x101000",
            "-ex",
            "continue",
        ])
        .args([
            "-ex",
            "delete",
            "-ex",
            "printf \"watched %d\\n\", *(int *)0x101000",
        ])
        .args([
            "-ex",
            "info threads",
            "-ex",
            "info registers cr0 efer fs_base eflags mxcsr",
        ])
        .args(["-ex", "p $ymm0", "-ex", "monitor registers"])
        .args([
            "-ex",
            "break *0x8000",
            "-ex",
            "continue",
            "-ex",
            "thread",
            "-ex",
            "delete",
        ])
        .args([
            "-ex",
            "thread 1",
            "-ex",
            "set var $rip = 0x100030",
            "-ex",
            "continue",
        ])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    for wanted in [
        "entry 0x100000",
        "count 1 1",
        "0x101000:\t0x000004d2",
        "Old value = 1234\nNew value = 42",
        "watched 42",
        "CPU 1, ",
        "cr0            0x11                [ PE ET ]",
        "vCPU 1: ",
        "Current thread is 2",
        "exited with code 07",
    ] {
        assert!(text.contains(wanted), "no '{wanted}' in:\n{text}");
    }
    assert_eq!(owner.join().unwrap(), [Visit::Ended]);
}
