//! A machine that is saved while its guest runs, restored into a fresh one, and goes on.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use config::EngineKind::{self, Interpreter, Translator};
use image::{Command, Freshness, GuestSpec, Input, Options, Session, Silent, Streams};
use machine::{Consoles, Content, Event, Machine, Payload, Snapshot};
use state::Section;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(300);

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

fn fresh(engine: EngineKind, cpus: u32, output: &Collected, kernel: &Collected) -> Machine {
    let shape = config::Machine {
        engine,
        cpus,
        memory: 256 << 20,
        ..config::Machine::default()
    };
    let out = |to: &Collected| -> Option<Box<dyn Write + Send>> { Some(Box::new(to.clone())) };
    let serial = [out(kernel), out(output), None, None];
    Machine::new(
        shape,
        Consoles {
            serial,
            ..Consoles::default()
        },
        None,
    )
    .unwrap()
}

fn payload(script: &str) -> Payload {
    let options = Options {
        freshness: Freshness::Daily,
        ..Options::default()
    };
    let guest = image::debian(&GuestSpec::default(), &options, &mut Silent).unwrap();
    let session = Session::Command(Command {
        words: ["sh", "-c", script].map(Into::into).to_vec(),
        environment: Vec::new(),
        streams: Streams::Pipes(Input::Null),
    });
    let read = |path| -> Arc<dyn Content> { Arc::new(std::fs::read(path).unwrap()) };
    let initrd = vec![read(&guest.initrd), Arc::new(session.overlay(&[]).unwrap())];
    let command_line = session.kernel_parameters().to_owned();
    Payload {
        kernel: read(&guest.kernel),
        initrd,
        command_line,
    }
}

/// Lets `machine` run until `output` has `text`.
fn run_until(machine: &mut Machine, output: &Collected, text: &str) {
    let start = Instant::now();
    machine.resume();
    while !output.text().contains(text) {
        let event = machine.wait(Some(Duration::from_millis(20)));
        assert_eq!(event, None, "{}", output.text());
        assert!(
            start.elapsed() < PATIENCE,
            "no {text:?} in {}",
            output.text()
        );
    }
    machine.pause();
}

fn sections(saved: &Snapshot) -> Vec<Section> {
    let reader = state::Reader::from_bytes(saved.state()).unwrap();
    reader.into_sections()
}

/// Saves and restores three times; the machine is on the first of `engines` first, then on the next.
fn goes_on_after_restore(engines: [EngineKind; 4], cpus: u32) {
    // Two processes that count, arithmetic on vectors in awk, and a clock that must not jump.
    let script = "
        (i=0; while [ $i -lt 300 ]; do echo a$i; i=$((i+1)); done) &
        i=0; while [ $i -lt 300 ]; do echo b$i; i=$((i+1)); done
        wait
        awk 'BEGIN { x = 1; for (i = 0; i < 1000; i++) x = x * 1.001; printf \"%.9f\\n\", x }'
        dmesg | grep -c -e 'BUG:' -e 'soft lockup' -e 'clocksource: timekeeping watchdog'
        echo end";
    let output = Collected::default();
    let kernel = Collected::default();
    let mut machine = fresh(engines[0], cpus, &output, &kernel);
    machine.load(payload(script)).unwrap();
    for (mark, engine) in ["b10\n", "b120\n", "b250\n"].into_iter().zip(&engines[1..]) {
        run_until(&mut machine, &output, mark);
        let saved = machine.save().unwrap();
        let mut next = fresh(*engine, cpus, &output, &kernel);
        next.restore(&saved).unwrap();
        // What was restored saves as what was saved.
        let again = sections(&next.save().unwrap());
        let before = sections(&saved);
        assert_eq!(before.len(), again.len());
        for (before, after) in before.iter().zip(&again) {
            assert_eq!(before, after, "at {mark:?}");
        }
        machine = next;
    }
    run_until(&mut machine, &output, "end\n");
    machine.resume();
    assert_eq!(machine.wait(Some(PATIENCE)), Some(Event::PowerOff));
    let text = output.text();
    for process in ["a", "b"] {
        let seen: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix(process))
            .collect();
        let expected: Vec<_> = (0..300).map(|i| i.to_string()).collect();
        assert_eq!(seen, expected, "{text}");
    }
    assert!(text.ends_with("2.716923932\n0\nend\n"), "{text}");
}

#[test]
fn one_cpu_goes_on_after_restore() {
    goes_on_after_restore([Translator; 4], 1);
}

#[test]
fn two_cpus_go_on_after_restore() {
    goes_on_after_restore([Translator; 4], 2);
}

#[test]
fn two_cpus_go_on_after_restore_in_the_interpreter() {
    goes_on_after_restore([Interpreter; 4], 2);
}

#[test]
fn one_cpu_moves_between_engines() {
    goes_on_after_restore([Interpreter, Translator, Interpreter, Translator], 1);
}

#[test]
fn two_cpus_move_between_engines() {
    goes_on_after_restore([Translator, Interpreter, Translator, Interpreter], 2);
}

/// The seconds that lines of `text` which start with `name` show, in their order.
fn seconds(text: &str, name: &str) -> Vec<f64> {
    text.lines()
        .filter_map(|line| line.strip_prefix(name)?.split_whitespace().next())
        .map(|number| number.parse().unwrap())
        .collect()
}

#[test]
fn guest_time_stands_while_paused_and_goes_on() {
    const PAUSE: Duration = Duration::from_secs(30);
    // Up to 20 seconds without a word of a CPU is no soft lockup: the pause is longer.
    let script = "
        look() { echo up $(cat /proc/uptime); echo rtc $(cat /sys/class/rtc/rtc0/since_epoch); }
        look; echo first
        for i in 1 2 3 4; do sleep 0.5; done
        look
        dmesg | grep -c -e 'BUG:' -e 'soft lockup' -e 'rcu.*stall' -e 'timekeeping watchdog' \
            -e 'hung'
        echo end";
    let output = Collected::default();
    let mut machine = fresh(Translator, 2, &output, &Collected::default());
    machine.load(payload(script)).unwrap();
    run_until(&mut machine, &output, "first\n");
    std::thread::sleep(PAUSE);
    let start = Instant::now();
    machine.resume();
    assert_eq!(machine.wait(Some(PATIENCE)), Some(Event::PowerOff));
    let ran = start.elapsed().as_secs_f64();

    let text = output.text();
    let up = seconds(&text, "up ");
    let passed = up[1] - up[0];
    // /proc/uptime has hundredths. What the guest did before it was paused is not in `ran`.
    assert!(
        passed >= 1.98 && passed < ran + 5.0,
        "{passed} s, ran {ran} s: {text}"
    );
    let rtc = seconds(&text, "rtc ");
    // The clock with the battery went on; its second may have been about to end.
    let battery = rtc[1] - rtc[0];
    assert!(
        battery >= PAUSE.as_secs_f64() + passed - 1.5,
        "{battery} s: {text}"
    );
    assert!(text.ends_with("\n0\nend\n"), "{text}");
}
