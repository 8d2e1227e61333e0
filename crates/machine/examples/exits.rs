//! What it costs a guest to reach a device, under every engine of the host: the round trip from the
//! instruction to the device and back, less that of a loop without. `cargo run --release -p machine --example exits`.
#![expect(clippy::print_stdout, reason = "its output is the point")]

#[path = "../tests/pvh/mod.rs"]
mod pvh;

use config::EngineKind;
use machine::{Consoles, Event, Machine, Payload};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the guest does it.
const COUNT: u32 = 20_000;
/// How often each is measured; the best counts.
const ROUNDS: usize = 5;

/// mov ecx, COUNT; again: `body`; dec ecx; jnz again; mov al, 7; out 0xf4, al; hlt
fn kernel(body: &[u8]) -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend(COUNT.to_le_bytes());
    code.extend(body);
    let back = -(body.len() as i8 + 3);
    code.extend([0x49, 0x75, back as u8]);
    code.extend([0xb0, 0x07, 0xe6, 0xf4, 0xf4]);
    pvh::kernel(&code)
}

/// How long the guest takes to its end.
fn measure(engine: EngineKind, body: &[u8]) -> Result<Duration, machine::Error> {
    let shape = config::Machine {
        engine,
        memory: config::MEMORY_MIN,
        ..config::Machine::default()
    };
    let mut machine = Machine::new(shape, Consoles::default(), None)?;
    machine.load(Payload {
        kernel: Arc::new(kernel(body)),
        ..Payload::default()
    })?;
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        machine.resume();
        let event = machine.wait(Some(Duration::from_secs(60)));
        best = best.min(began.elapsed());
        assert_eq!(event, Some(Event::Exit(7)));
        machine.reset()?;
    }
    Ok(best)
}

fn main() {
    let bodies: [(&str, &[u8]); 3] = [
        // in al, 0x80
        ("port read", &[0xe4, 0x80]),
        // out 0x80, al
        ("port write", &[0xe6, 0x80]),
        // mov eax, [0xfed00000]: the HPET's capabilities
        ("MMIO read", &[0xa1, 0x00, 0x00, 0xd0, 0xfe]),
    ];
    println!(
        "{:<12} {:>12} {:>12} {:>12}",
        "ns", bodies[0].0, bodies[1].0, bodies[2].0
    );
    for engine in [
        EngineKind::Kvm,
        EngineKind::Translator,
        EngineKind::Interpreter,
    ] {
        let nothing = match measure(engine, &[]) {
            Ok(time) => time,
            Err(problem) => {
                println!("{:<12} {problem}", engine.name());
                continue;
            }
        };
        let each = bodies.map(|(_, body)| {
            let time = measure(engine, body).expect("it ran without");
            time.saturating_sub(nothing).as_nanos() / u128::from(COUNT)
        });
        println!(
            "{:<12} {:>12} {:>12} {:>12}",
            engine.name(),
            each[0],
            each[1],
            each[2]
        );
    }
}
