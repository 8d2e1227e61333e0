//! Small guests on a whole machine, over every engine of the host, and from one to another.

#[macro_use]
mod engines;
mod pvh;

use config::EngineKind::{self, Interpreter, Kvm, Translator};
use machine::{Consoles, Event, Machine, Payload};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use x86::Activity;

/// How long a guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the host has a KVM that can be used.
fn any_kvm() -> Result<(), String> {
    machine::kvm_speed().map(|_| ()).map_err(|e| e.to_string())
}

/// An output that collects.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<u8>>>);

impl Collected {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Collected {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn machine(shape: config::Machine, output: &Collected) -> Machine {
    let serial: Option<Box<dyn Write + Send>> = Some(Box::new(output.clone()));
    let consoles = Consoles {
        serial: [serial, None, None, None],
        ..Consoles::default()
    };
    Machine::new(shape, consoles, None).unwrap()
}

fn shape(engine: EngineKind, cpus: u32) -> config::Machine {
    config::Machine {
        engine,
        cpus,
        memory: config::MEMORY_MIN,
        ..config::Machine::default()
    }
}

fn load(machine: &mut Machine, code: &[u8]) {
    let payload = Payload {
        kernel: Arc::new(pvh::kernel(code)),
        ..Payload::default()
    };
    machine.load(payload).unwrap();
}

on_every_engine! {
    any_kvm;
    interrupts_of_all_kinds_come,
    a_guest_goes_on_after_a_pause,
    an_interrupt_that_was_acknowledged_is_delivered_after_a_restore,
}

fn interrupts_of_all_kinds_come(engine: EngineKind) {
    let mut machine = machine(shape(engine, 2), &Collected::default());
    load(&mut machine, include_bytes!("guests/interrupts.bin"));
    for _ in 0..2 {
        machine.resume();
        assert_eq!(machine.wait(Some(PATIENCE)), Some(Event::Exit(7)));
        machine.reset().unwrap();
    }
}

/// As the PIC's may be when a machine is saved: it has been asked for the vector, which is nowhere
/// else.
fn an_interrupt_that_was_acknowledged_is_delivered_after_a_restore(engine: EngineKind) {
    const TICKS: u64 = 0x12_0000;
    let output = Collected::default();
    let mut machine = machine(shape(engine, 1), &output);
    load(&mut machine, include_bytes!("guests/ticks.bin"));
    // In a halt it takes interrupts.
    let mut state = loop {
        machine.resume();
        std::thread::sleep(Duration::from_millis(1));
        machine.pause();
        let state = machine.with_vcpu(0, |vcpu| vcpu.state());
        if state.activity == Activity::Halted && !output.text().is_empty() {
            break state;
        }
    };
    let before = machine.memory().load::<u32>(TICKS).unwrap();
    // No other comes: the timer is masked, and has not expired.
    state.apic.lvt[0] |= 1 << 16;
    state.apic.irr = [0; 8];
    state.events.interrupt = Some(0x30);
    let taken = machine.with_vcpu(0, |vcpu| {
        vcpu.set_state(&state).unwrap();
        vcpu.state()
    });
    assert_eq!(taken.events.interrupt, Some(0x30));
    machine.resume();
    std::thread::sleep(Duration::from_millis(20));
    machine.pause();
    assert_eq!(machine.memory().load::<u32>(TICKS).unwrap(), before + 1);
    let after = machine.with_vcpu(0, |vcpu| vcpu.state());
    assert_eq!(after.events.interrupt, None);
}

/// FWAIT is what the kernel's emulator has not.
#[test]
fn a_kvm_that_gives_up_says_where_and_what_would_do() {
    let Ok(speed) = machine::kvm_speed() else {
        return eprintln!("skipped: no KVM");
    };
    let mut machine = machine(shape(Kvm, 1), &Collected::default());
    // fwait; mov al, 7; out 0xf4, al; hlt
    load(&mut machine, &[0x9b, 0xb0, 0x07, 0xe6, 0xf4, 0xf4]);
    machine.resume();
    match machine.wait(Some(PATIENCE)) {
        Some(Event::Failed { vcpu, text }) if !speed.is_hardware() => {
            assert_eq!(vcpu, Some(0));
            assert!(
                text.contains("0x100000, instruction bytes 9b b0 07"),
                "{text}"
            );
            assert!(text.ends_with("try --engine translator"), "{text}");
        }
        event => assert_eq!(event, Some(Event::Exit(7))),
    }
}

/// The letters of the ticks.
fn letters() -> String {
    ('B'..).take(39).collect()
}

fn a_guest_goes_on_after_a_pause(engine: EngineKind) {
    let output = Collected::default();
    let mut machine = machine(shape(engine, 1), &output);
    load(&mut machine, include_bytes!("guests/ticks.bin"));
    for _ in 0..20 {
        machine.resume();
        std::thread::sleep(Duration::from_millis(5));
        machine.pause();
        let ticks = output.text().len();
        // A timer that does not stand would have expired once or more.
        std::thread::sleep(Duration::from_millis(12));
        assert_eq!(output.text().len(), ticks);
    }
    machine.resume();
    assert_eq!(machine.wait(Some(PATIENCE)), Some(Event::Exit(7)));
    assert_eq!(output.text(), letters());
}

/// Lets the guest of ticks run, and saves it each time that it has printed four letters more, to go
/// on under the next engine.
fn moves_between(engines: &[EngineKind], cpus: u32) {
    if let Err(problem) = any_kvm() {
        eprintln!("skipped: {problem}");
        return;
    }
    let output = Collected::default();
    // A TSC of a frequency, and a CPU, that KVM can give: then all can.
    let khz = ::kvm::Host::open().unwrap().tsc_khz(1_000_000).unwrap();
    let first = machine(shape(Kvm, cpus), &output);
    let cpu = first.save().unwrap().cpu().unwrap();
    drop(first);
    let under = |engine| {
        let shape = config::Machine {
            cpu,
            tsc_khz: Some(khz),
            ..shape(engine, cpus)
        };
        machine(shape, &output)
    };
    let mut here = under(engines[0]);
    load(&mut here, include_bytes!("guests/ticks.bin"));
    for (moves, engine) in (1..).zip(&engines[1..]) {
        here.resume();
        let start = Instant::now();
        while output.text().len() < 4 * moves {
            assert_eq!(here.wait(Some(Duration::from_millis(1))), None);
            assert!(start.elapsed() < PATIENCE, "{}", output.text());
        }
        here.pause();
        let saved = here.save().unwrap();
        here = under(*engine);
        here.restore(&saved).unwrap();
    }
    here.resume();
    assert_eq!(here.wait(Some(PATIENCE)), Some(Event::Exit(7)));
    assert_eq!(output.text(), letters());
}

#[test]
fn a_guest_moves_between_kvm_and_the_translator() {
    moves_between(&[Kvm, Translator, Kvm, Kvm, Translator], 1);
}

#[test]
fn a_guest_moves_between_kvm_and_the_interpreter() {
    moves_between(&[Interpreter, Kvm, Interpreter, Kvm], 1);
}

#[test]
fn a_guest_moves_between_all_engines() {
    let engines = [Translator, Kvm, Interpreter, Translator, Interpreter, Kvm];
    moves_between(&engines, 2);
}
