//! `doppel run`.

use crate::args::{Engine, Entry, RunArgs, Windows};
use crate::console::{self, Ends, Log, Source};
use crate::cpu::{self, CpuArgument};
use crate::debian::{self, Reported};
use crate::ending::{Ending, Stderr};
use crate::monitor::{self, Action};
use crate::{payload, statistics, status, terminal};
use anyhow::{Context, Result};
use image::{Session, Streams};
use machine::{Consoles, Event, GdbServer, Machine, Payload, TraceSink, Visit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs a virtual machine to its end. Returns the exit status.
pub(crate) fn run(args: &RunArgs) -> Result<u8> {
    if args.cpu == CpuArgument::Help {
        return cpu::print();
    }
    if let Some(name) = &args.name {
        show_name(name);
    }
    let shape = shape(args)?;
    let session = args.guest.is_some().then(|| debian::session(args));
    let payload = match (&args.guest, &session) {
        (Some(guest), Some(session)) => debian::payload(args, guest, session)?,
        _ => kernel_payload(args)?,
    };
    let ending = Ending::new().context("can't make an event descriptor")?;
    let Ends {
        output,
        input,
        socket: _socket,
    } = Ends::open(&args.console, &ending)?;
    let log = Log::default();
    let reported = Arc::new(Reported::default());
    let serial = match &session {
        Some(session) => debian::outputs(session, &reported, output, &log, &ending, args.verbose),
        None => [Some(log.tee(output)), None, None, None],
    };
    let consoles = Consoles {
        serial,
        virtio: None,
        debug: Some(Box::new(Stderr(ending.clone()))),
    };
    let mut machine = Machine::new(shape, consoles, trace(args, &ending)?)?;
    // That there is no fast KVM is nothing special: `doppel engines` says why.
    let special = machine
        .passed_over()
        .iter()
        .filter(|(name, _)| *name != "kvm");
    for (name, problem) in special {
        let taken = machine.engine_name();
        eprintln!("doppel: the {name} can't run here, so this is the {taken}: {problem}");
    }
    ending.tell(machine.events());
    machine.load(payload)?;
    let gdb = args
        .gdb
        .as_deref()
        .map(|address| listen_for_gdb(&machine, address))
        .transpose()?;

    // Nothing can be wrong with the input any more that would leave a file behind.
    crate::kvm_speed::keep();
    let from_terminal = matches!(input, Source::Stdin) && terminal::is_interactive();
    watch_signals(&machine, &ending, session.is_some())?;
    // From here on a signal that ends us does not leave the terminal raw.
    let raw = from_terminal.then(terminal::RawMode::enter).flatten();
    start_input(
        &machine,
        session.as_ref(),
        &reported,
        input,
        ending.clone(),
        from_terminal,
    );
    if gdb.is_none() {
        machine.resume();
    }
    let one_command = matches!(session, Some(Session::Command(_)));
    let policy = Policy {
        log: &log,
        keep_ended: args.no_reboot || one_command,
    };
    let deadline = args
        .timeout
        .map(|s| Instant::now() + Duration::from_secs(s));
    let end = Loop {
        machine: &mut machine,
        policy,
        gdb,
        deadline,
        ending: &ending,
    }
    .run();
    drop(raw);
    let status = conclude(
        end?,
        &machine,
        &log,
        reported.status(),
        ending.signal(),
        args.verbose || !one_command,
    );
    if args.stats {
        eprint!("{}", statistics::table(&machine));
    }
    Ok(status)
}

/// Shows the machine's name as that of the process in ps and top, which cut it to 15 bytes.
fn show_name(name: &str) {
    if let Ok(name) = std::ffi::CString::new(format!("doppel:{name}")) {
        // Only for people to look at: without it, the program's name is there.
        let _ = rustix::thread::set_name(&name);
    }
}

fn shape(args: &RunArgs) -> Result<config::Machine> {
    let shape = config::Machine {
        name: args.name.clone(),
        engine: match args.engine {
            Engine::Auto => config::EngineKind::Auto,
            Engine::Kvm => config::EngineKind::Kvm,
            Engine::Translator => config::EngineKind::Translator,
            Engine::Interpreter => config::EngineKind::Interpreter,
        },
        cpu: args.cpu.cpu(),
        code_cache: args.code_cache,
        windows: match args.windows {
            Windows::Auto => config::Windows::Auto,
            Windows::Always => config::Windows::Always,
            Windows::Never => config::Windows::Never,
        },
        perf_map: args.perf_map,
        check_translation: args.check_translation,
        cpus: args.cpus,
        memory: args.memory.bytes,
        hugepages: args.memory.hugepages,
        tsc_khz: None,
        entry: match args.entry {
            Entry::Auto => config::KernelEntry::Auto,
            Entry::Bits64 => config::KernelEntry::Bits64,
            Entry::Bits32 => config::KernelEntry::Bits32,
        },
        uuid: uuid(),
    };
    shape.validate()?;
    crate::kvm_speed::recall();
    machine::check_cpu(&shape)?;
    Ok(shape)
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> [u8; 16] {
    let mut uuid = [0; 16];
    // Without entropy it is the nil UUID.
    let _ = rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty());
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

fn trace(args: &RunArgs, ending: &Ending) -> Result<Option<Arc<TraceSink>>> {
    let Some(kinds) = args.trace else {
        return Ok(None);
    };
    let output: Box<dyn Write + Send> = match &args.trace_file {
        Some(path) => {
            let file = File::create(path)
                .with_context(|| format!("can't write the trace to {}", path.display()))?;
            Box::new(std::io::BufWriter::new(file))
        }
        None => Box::new(Stderr(ending.clone())),
    };
    Ok(Some(Arc::new(TraceSink::new(kinds, output))))
}

fn kernel_payload(args: &RunArgs) -> Result<Payload> {
    let kernel = args
        .kernel
        .as_deref()
        .context("give a guest such as debian, or --kernel")?;
    let mut command_line = args
        .cmdline
        .clone()
        .unwrap_or_else(|| "console=ttyS0".to_owned());
    if !command_line
        .split_whitespace()
        .any(|word| word.starts_with("panic="))
    {
        command_line += " panic=-1";
    }
    let initrd = args
        .initrd
        .iter()
        .map(|path| payload::open(path, "initrd"))
        .collect::<Result<_>>()?;
    Ok(Payload {
        kernel: payload::open(kernel, "kernel")?,
        initrd,
        command_line,
    })
}

fn listen_for_gdb(machine: &Machine, address: &str) -> Result<GdbServer> {
    let gdb = GdbServer::listen(address, machine.events())
        .with_context(|| format!("can't listen for gdb at {address}"))?;
    eprintln!("doppel: waiting for gdb at {}", gdb.address());
    Ok(gdb)
}

/// Connects the host's input to the machine.
fn start_input(
    machine: &Machine,
    session: Option<&Session>,
    reported: &Arc<Reported>,
    source: Source,
    ending: Ending,
    escapes: bool,
) {
    let ports = &machine.inputs().serial;
    match session {
        Some(Session::Command(command)) if matches!(command.streams, Streams::Pipes(_)) => {
            debian::feed_pipe(reported.clone(), ports[1].clone());
        }
        Some(Session::Command(_)) => {
            console::feed(source, ports[1].clone(), machine.events(), ending, escapes);
        }
        _ => console::feed(source, ports[0].clone(), machine.events(), ending, escapes),
    }
}

/// Hears signals on a thread.
fn watch_signals(machine: &Machine, ending: &Ending, resizes: bool) -> Result<()> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP, SIGWINCH]).context("can't listen for signals")?;
    let control = machine.inputs().serial[3].clone();
    let ending = ending.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGWINCH {
                    if resizes {
                        debian::resize(&control);
                    }
                    continue;
                }
                ending.signalled(signal);
            }
        })?;
    Ok(())
}

/// Why the machine ended.
enum End {
    PowerOff,
    Exit(u8),
    Reset,
    TripleFault { vcpu: usize, text: String },
    Failed(String),
    Timeout,
    Quit,
}

impl End {
    /// The status that a debugger is told.
    fn status(&self, log: &Log) -> u8 {
        match self {
            Self::Reset if log.panic().is_some() => status::PANIC,
            Self::PowerOff | Self::Reset | Self::Quit => status::OK,
            Self::Exit(status) => *status,
            Self::TripleFault { .. } => status::TRIPLE_FAULT,
            Self::Failed(_) => status::ENGINE,
            Self::Timeout => status::TIMEOUT,
        }
    }
}

/// What follows from an event.
enum Next {
    /// The guest runs if it did before.
    GoOn,
    Pause,
    Resume,
    End(End),
}

/// What the events of a machine lead to.
struct Policy<'a> {
    log: &'a Log,
    /// A reset ends the machine.
    keep_ended: bool,
}

impl Policy<'_> {
    fn handle(&self, machine: &mut Machine, event: Event) -> Result<Next> {
        Ok(match event {
            Event::PowerOff => Next::End(End::PowerOff),
            Event::Exit(status) => Next::End(End::Exit(status)),
            Event::TripleFault { vcpu, text } => Next::End(End::TripleFault { vcpu, text }),
            Event::Failed { text, .. } => Next::End(End::Failed(text)),
            Event::Quit => Next::End(End::Quit),
            Event::Reset if self.keep_ended || self.log.panic().is_some() => Next::End(End::Reset),
            Event::Reset => self.reset(machine)?,
            // Left over from a debugger that has gone.
            Event::Debug { .. } | Event::Debugger => Next::GoOn,
            Event::Request(line) => match monitor::execute(machine, &line) {
                Action::None => Next::GoOn,
                Action::Pause => Next::Pause,
                Action::Resume => Next::Resume,
                Action::Reset => self.reset(machine)?,
                Action::Quit => Next::End(End::Quit),
            },
        })
    }

    fn reset(&self, machine: &mut Machine) -> Result<Next> {
        self.log.clear();
        machine.reset()?;
        Ok(Next::GoOn)
    }
}

struct Loop<'a> {
    machine: &'a mut Machine,
    policy: Policy<'a>,
    gdb: Option<GdbServer>,
    deadline: Option<Instant>,
    ending: &'a Ending,
}

impl Loop<'_> {
    fn run(&mut self) -> Result<End> {
        // With --gdb, the first instruction waits for gdb.
        let mut held = self.gdb.is_some();
        loop {
            let left = self
                .deadline
                .map(|d| d.saturating_duration_since(Instant::now()));
            let Some(event) = self.machine.wait(left) else {
                self.ending.release();
                self.machine.pause();
                return Ok(End::Timeout);
            };
            let next = match event {
                Event::Debugger => self.debug()?,
                _ => self.policy.handle(self.machine, event)?,
            };
            match next {
                Next::GoOn => {}
                Next::Pause => held = true,
                Next::Resume => held = false,
                Next::End(end) => return Ok(end),
            }
            if !held {
                self.machine.resume();
            }
        }
    }

    /// Lets a debugger that called have the machine.
    fn debug(&mut self) -> Result<Next> {
        let Some(gdb) = &mut self.gdb else {
            return Ok(Next::GoOn);
        };
        let mut end = Ok(End::Quit);
        let policy = &self.policy;
        let visit = gdb.serve(self.machine, self.deadline, &mut |machine, event| {
            let status = match policy.handle(machine, event) {
                Ok(Next::End(reason)) => {
                    let status = reason.status(policy.log);
                    end = Ok(reason);
                    status
                }
                // While it is there, gdb says whether the guest runs.
                Ok(_) => return ControlFlow::Continue(()),
                Err(error) => {
                    end = Err(error);
                    status::USAGE
                }
            };
            ControlFlow::Break(status)
        });
        Ok(match visit {
            Visit::None => Next::GoOn,
            Visit::Detached { problem } => {
                if let Some(problem) = problem {
                    eprint!("doppel: gdb is gone: {problem}\r\n");
                }
                Next::Resume
            }
            Visit::Killed => Next::End(End::Quit),
            Visit::Ended => Next::End(end?),
            Visit::TimedOut => Next::End(End::Timeout),
        })
    }
}

/// Says what a person needs to know, and returns the exit status.
fn conclude(
    end: End,
    machine: &Machine,
    log: &Log,
    command: Option<u8>,
    signal: Option<u8>,
    log_was_shown: bool,
) -> u8 {
    let show_log = || {
        if !log_was_shown && command.is_none() {
            eprintln!("doppel: the last messages of the guest's kernel:");
            let text = log.text();
            let lines: Vec<_> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("  {}", line.trim_end());
            }
        }
    };
    match end {
        End::PowerOff => command.unwrap_or(status::OK),
        End::Exit(status) => status,
        End::Reset => match log.panic() {
            Some(panic) => {
                show_log();
                eprintln!("doppel: the guest's kernel panicked: {panic}");
                status::PANIC
            }
            None => command.unwrap_or(status::OK),
        },
        End::TripleFault { vcpu, text } => {
            // The text has this vCPU's registers; the others may tell why.
            eprintln!("doppel: {text}");
            for (_, report) in machine
                .reports()
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != vcpu)
            {
                eprintln!("{report}");
            }
            show_log();
            status::TRIPLE_FAULT
        }
        End::Failed(text) => {
            eprintln!("doppel: the engine can't go on: {text}");
            for report in machine.reports() {
                eprintln!("{report}");
            }
            status::ENGINE
        }
        End::Timeout => {
            eprintln!("doppel: the time given with --timeout has passed");
            status::TIMEOUT
        }
        End::Quit => signal.map_or(status::OK, |number| status::SIGNAL + number),
    }
}
